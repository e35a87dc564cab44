"""What is written and found on every kind of store, also by several runs that want one output."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from galray.core.claims import Claim, is_claim
from galray.core.errors import PublishError, StorageDenied, StorageUnreachable
from galray.core.manifest import Manifest, publish
from galray.core.storage import Location, open_location
from galray.search.records import TrialRecord, begun
from galray.search.space import Point
from tests.integration import services

N_RUNS = 6


@pytest.fixture(params=["tmp_path", "s3_root", "gs_root"])
def place(request: pytest.FixtureRequest) -> Location:
    return open_location(f"{request.getfixturevalue(request.param)}/galaxies")


def test_files_are_listed_and_folders_are_not(place: Location) -> None:
    """On ``gs://`` a folder is but a part of names."""
    for name in ("a", "b/c", "b/d/e"):
        (place / name).write_bytes(b"12")
    assert [info.base_name for info in place.children()] == ["a"]
    listed = sorted(place.names())
    assert listed == ["a", "b/c", "b/d/e"]


def test_trials_that_have_begun_are_found(place: Location) -> None:
    whole, begun_only = (TrialRecord.of(place, Point(scale, augmentation_ratio=1.0)) for scale in (1.0, 2.0))
    for record in (begun_only, whole):
        assert record.begin("a-run") == "a-run"
    whole.end()
    assert begun(place) == [whole, begun_only]


def test_of_many_that_create_a_file_at_once_one_succeeds(place: Location) -> None:
    start = threading.Barrier(N_RUNS)

    def create(i: int) -> bool:
        start.wait()
        return (place / "file").create(str(i).encode())

    with ThreadPoolExecutor(N_RUNS) as runs:
        created = list(runs.map(create, range(N_RUNS)))
    assert created.count(True) == 1
    assert (place / "file").read_bytes() == str(created.index(True)).encode()


@pytest.mark.parametrize("resume", [False, True], ids=["fresh", "resumed"])
def test_of_many_runs_one_publishes_and_the_others_are_told(place: Location, resume: bool) -> None:
    if resume:  # of a run that was killed on a machine that is gone
        dead = Claim(
            1, "galaxies", "a", "a-machine-that-is-gone", 1, 0.0, "", "2026-01-01T00:00:00+00:00", "0"
        )
        assert (place / dead.name).create(dead.content)
    start, told = threading.Barrier(N_RUNS), threading.Barrier(N_RUNS)

    def run(i: int) -> str:
        start.wait()
        try:
            with publish(place, "galaxies", {"resume": resume}) as publication:
                publication.write("shards/a", str(i))
                told.wait()
                return "published"
        except PublishError as error:
            told.wait()
            return str(error)

    with ThreadPoolExecutor(N_RUNS) as runs:
        said = list(runs.map(run, range(N_RUNS)))
    assert said.count("published") == 1
    assert all("written by process" in s or "claimed by process" in s for s in said if s != "published"), said
    assert (place / "shards/a").read_bytes() == str(said.index("published")).encode()
    assert [file.path for file in Manifest.read(place).files] == ["shards/a"]
    assert not [info for info in place.children() if is_claim(info.base_name)]


def test_wrong_keys_cannot_claim(s3_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-wrong-secret")
    with pytest.raises(StorageDenied) as caught:
        (open_location(s3_root) / "file").create(b"")
    assert "a-wrong-secret" not in str(caught.value)


def test_a_bucket_out_of_reach_cannot_be_claimed(s3_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (port,) = services.free_ports(1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    with pytest.raises(StorageUnreachable, match=f"{port}"):
        (open_location(s3_root) / "file").create(b"")
