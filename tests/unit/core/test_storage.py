"""Locations, whole writes, and what the operating system and object stores say, in galray's words."""

import os
import pickle
from contextlib import suppress

import pytest
from pyarrow import fs

from galray.core.errors import ConfigError, InputError, StorageDenied, StorageError, StorageUnreachable
from galray.core.storage import Location, open_location, storage_errors


@pytest.fixture
def folder(tmp_path) -> Location:
    return open_location(str(tmp_path))


def test_local_paths_are_absolute_and_normal(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert open_location("runs/../a/").uri == open_location(f"file://{tmp_path}/a").uri == f"{tmp_path}/a"
    assert open_location("~/x").path == os.path.expanduser("~/x")
    assert (open_location("a") / "b/c").name == "c"


@pytest.mark.parametrize("name", ["a#b", "a?b", "a b", "100%", "10:30"])
def test_odd_names_are_kept(folder, name):
    (folder / name).write_bytes(b"x")
    assert open_location((folder / name).uri).read_bytes() == b"x"


def test_bucket_paths(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    location = open_location("s3://bucket/a#b/c?d/")
    assert (location.uri, location.path) == ("s3://bucket/a#b/c?d", "bucket/a#b/c?d")
    assert not location.is_local


@pytest.mark.parametrize("uri", ["http://host/x", "gs://bucket/x", "s3:///prefix", "s3://"])
def test_other_places_are_refused_with_the_remedy(uri):
    with pytest.raises(ConfigError, match=r"s3://bucket/prefix"):
        open_location(uri)


def test_keys_in_a_uri_are_refused_and_not_repeated():
    with pytest.raises(ConfigError, match="AWS_ACCESS_KEY_ID") as caught:
        open_location("s3://AKIAKEY:hunter2@bucket/prefix")
    assert "hunter2" not in str(caught.value)
    assert "AKIAKEY" not in str(caught.value)


def test_an_endpoint_without_a_scheme_is_refused(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "localhost:9000")
    with pytest.raises(ConfigError, match="with its scheme"):
        open_location("s3://bucket/x")


def test_a_location_travels(folder):
    (folder / "a").write_bytes(b"1")
    assert pickle.loads(pickle.dumps(folder / "a")).read_bytes() == b"1"


def test_files_and_children(folder):
    for name in ("a", "b/c", "b/d/e"):
        (folder / name).write_bytes(b"12")
    assert sorted(info.base_name for info in folder.children()) == ["a", "b"]
    assert sorted(os.path.relpath(info.path, folder.path) for info in folder.files()) == ["a", "b/c", "b/d/e"]
    assert (folder / "nothing").files() == (folder / "nothing").children() == []


def test_delete(folder):
    (folder / "a/b").write_bytes(b"1")
    (folder / "a/b").delete()
    (folder / "a").delete()
    (folder / "a").delete()
    assert (folder / "a").kind() == fs.FileType.NotFound


def test_a_write_replaces_the_whole_file_and_leaves_nothing_else(folder):
    (folder / "a").write_bytes(b"long content")
    (folder / "a").write_bytes(b"new")
    assert (folder / "a").read_bytes() == b"new"
    assert os.listdir(folder.path) == ["a"]


def test_a_failed_write_leaves_what_was_there(folder):
    (folder / "a").write_bytes(b"old")
    with suppress(KeyboardInterrupt), (folder / "a").writing() as file:
        file.write(b"half of the new")
        raise KeyboardInterrupt
    assert (folder / "a").read_bytes() == b"old"
    assert os.listdir(folder.path) == ["a"]


def test_a_file_being_written_is_not_seen(folder):
    with (folder / "a").writing() as file:
        file.write(b"half")
        assert not (folder / "a").exists()
    assert (folder / "a").read_bytes() == b"half"


def test_what_is_not_there_is_bad_input(folder):
    with pytest.raises(InputError, match=r"nothing does not exist"):
        (folder / "nothing").read_bytes()


def test_a_file_in_place_of_a_folder(folder):
    (folder / "file").write_bytes(b"1")
    with pytest.raises(StorageError, match=r"file/below"):
        (folder / "file" / "below").write_bytes(b"2")


# What pyarrow 25 says, as seen with a real service.
SAID = [
    (OSError("AWS Error ACCESS_DENIED during HeadObject operation: No response body."), StorageDenied),
    (OSError("When getting information for key: AWS Error UNKNOWN (HTTP status 403)"), StorageDenied),
    (OSError("AWS Error NETWORK_CONNECTION: curlCode: 7, Couldn't connect to server"), StorageUnreachable),
    (OSError("AWS Error NETWORK_CONNECTION: curlCode: 28, Timeout was reached"), StorageUnreachable),
    (OSError("AWS Error NO_SUCH_BUCKET during PutObject operation: None"), StorageError),
    (PermissionError(13, "Permission denied"), StorageDenied),
    (OSError(28, "No space left on device"), StorageError),
    (FileNotFoundError(2, "No such file"), InputError),
]


@pytest.mark.parametrize(("said", "kind"), SAID)
def test_errors_are_translated_and_name_the_place(said, kind):
    with pytest.raises(kind, match=r"s3://bucket/x") as caught, storage_errors("s3://bucket/x"):
        raise said
    assert type(caught.value) is kind
    assert caught.value.__cause__ is said
