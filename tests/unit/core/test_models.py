"""Folders of models: weights as safetensors and settings as JSON, nothing that could run code."""

from pathlib import Path

import pytest

from galray.core.errors import InputError
from galray.core.models import refuse_pickled


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "unet").mkdir()
    for name in ("model_index.json", "unet/config.json", "unet/model.safetensors", "merges.txt"):
        (tmp_path / name).write_bytes(b"{}")
    return tmp_path


def test_a_folder_without_a_pickle_is_accepted(folder: Path) -> None:
    refuse_pickled(folder)


@pytest.mark.parametrize("name", ["unet/weights.bin", "model.PT", "a.ckpt", ".hidden.pkl", "unet/x.joblib"])
def test_a_folder_with_a_pickle_is_refused(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"")
    with pytest.raises(InputError, match=rf"holds pickled files, .*: {name}\. Convert.*safetensors"):
        refuse_pickled(folder)
