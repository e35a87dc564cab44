"""What the quickstart finds where it is to run."""

from __future__ import annotations

from pathlib import Path

import pytest

from galray.core.errors import PublishError
from galray.quickstart import QuickstartConfig, quickstart


def test_an_interrupted_run_is_neither_destroyed_nor_taken_for_a_finished_one(tmp_path: Path) -> None:
    begun = tmp_path / "survey/tiles/tile-0.fits"
    begun.parent.mkdir(parents=True)
    begun.write_bytes(b"some of it")
    with pytest.raises(PublishError, match=r"interrupted run \(survey\).*RESUME=1"):
        quickstart(QuickstartConfig(root=str(tmp_path)))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [begun]
    assert begun.read_bytes() == b"some of it"
