"""Locations, whole writes, and what the operating system and object stores say, in galray's words."""

import os
import pickle
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import PackageNotFoundError

import pytest
from pyarrow import fs

from galray.core import gcs
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


@pytest.mark.parametrize("uri", ["http://host/x", "s3:///prefix", "s3://", "gs://", "gs:///prefix"])
def test_other_places_are_refused_with_the_remedy(uri):
    with pytest.raises(ConfigError, match=r"(s3|gs)://bucket/prefix"):
        open_location(uri)


def test_google_needs_its_library(monkeypatch):
    def nothing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(gcs, "version", nothing)
    with pytest.raises(ConfigError, match=r"pip install 'galray\[gcs\]'"):
        open_location("gs://bucket/x")


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
    assert sorted(info.base_name for info in folder.children()) == ["a"]
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
    (OSError("AWS Error SLOW_DOWN during CreateMultipartUpload operation: m"), StorageUnreachable),
    (OSError("AWS Error INTERNAL_FAILURE during ListObjectsV2 operation: m"), StorageUnreachable),
    (OSError("AWS Error UNKNOWN (HTTP status 503) during HeadObject operation"), StorageUnreachable),
    (OSError("AWS Error REQUEST_TIME_TOO_SKEWED during ListObjectsV2 operation: m"), StorageDenied),
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


def test_the_disks_own_word_is_told_with_its_remedy():
    with (
        pytest.raises(StorageError, match=r"/data/x: the disk is full.*--resume"),
        storage_errors("/data/x"),
        open("/dev/full", "wb", buffering=0) as disk,
    ):
        disk.write(b"x")


RUNS_ON_A_FULL_DISK = """
import os, sys
from galray.core.errors import StorageError
from galray.core.manifest import Manifest, publish
from galray.core.storage import open_location

disk = sys.argv[1]
place, ballast = open_location(f"{disk}/galaxies"), f"{disk}/ballast"

def run(config, size_bytes):
    try:
        with publish(place, "galaxies", config) as publication:
            publication.write("shards/a", b"first")
            publication.write("shards/b", bytes(size_bytes))
        return "published"
    except StorageError as error:
        return str(error)

with open(ballast, "wb", buffering=0) as file:
    file.write(bytes(1 << 20))
print(run({}, 1), sorted(os.listdir(place.path)))
os.unlink(ballast)
print(run({}, 1 << 20), sorted(os.listdir(place.path)), os.listdir(f"{place.path}/shards"))
print(run({"resume": True}, 1), len(Manifest.read(place).files))
"""


def test_a_full_disk_leaves_no_trace_and_the_work_goes_on(tmp_path):
    """On a real disk of 64 KiB: full before a run claims its folder, then in the middle of it."""
    alone = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    mount = 'mount -t tmpfs -o size=64k tmpfs "$0" && exec "$@"'
    if shutil.which("unshare") is None or subprocess.run([*alone, mount, tmp_path, "true"]).returncode:
        pytest.skip("no file system can be mounted here")
    command = [sys.executable, "-c", RUNS_ON_A_FULL_DISK, tmp_path]
    done = subprocess.run([*alone, mount, tmp_path, *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    claimed, written, resumed = done.stdout.splitlines()
    assert re.fullmatch(rf"{tmp_path}/galaxies/unfinished.json: the disk is full.* \[\]", claimed)
    told = rf"{tmp_path}/galaxies/shards/b: the disk is full.*--resume.*"
    assert re.fullmatch(rf"{told} \['shards', 'unfinished.json'\] \['a'\]", written)
    assert resumed == "published 2"


class Answering(BaseHTTPRequestHandler):
    """An object store that answers every request in one way, as AWS documents it: HEAD without a body."""

    protocol_version = "HTTP/1.1"
    status, code = 400, "ExpiredToken"

    def answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = (
            f"<Error><Code>{self.code}</Code><Message>m</Message></Error>" if self.command != "HEAD" else ""
        )
        self.send_response(self.status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    do_GET = do_HEAD = do_PUT = do_POST = answer

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def answering(monkeypatch) -> Iterator[None]:
    """Buckets lie in such an object store."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Answering) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        for name in ("AWS_ENDPOINT_URL", "STORAGE_EMULATOR_HOST"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{server.server_port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
            monkeypatch.setenv(name, "a-temporary-key")
        yield
        server.shutdown()
        thread.join()


ASKED = {
    "read": Location.read_bytes,
    "write": lambda place: place.write_bytes(b"data"),
    "create": lambda place: place.create(b"data"),
    "look": Location.exists,
    "list": Location.files,
}


@pytest.mark.usefixtures("answering")
@pytest.mark.parametrize(
    ("asked", "status", "code", "told"),
    [
        ("read", 400, "ExpiredToken", r"refuses without a reason, .*expired"),
        ("look", 400, "ExpiredToken", r"refuses without a reason, .*expired"),
        ("list", 400, "ExpiredToken", r"the keys have expired"),
        ("write", 400, "ExpiredToken", r"the keys have expired"),
        ("create", 400, "ExpiredToken", r"the keys have expired"),
        ("write", 403, "QuotaExceeded", r"its quota used up"),
        ("create", 403, "QuotaExceeded", r"its quota used up"),
    ],
)
def test_what_a_store_answers_is_told_with_its_remedy(monkeypatch, asked, status, code, told):
    monkeypatch.setattr(Answering, "status", status)
    monkeypatch.setattr(Answering, "code", code)
    with pytest.raises(StorageError, match=rf"s3://bucket/x: .*{told}.*--resume") as caught:
        ASKED[asked](open_location("s3://bucket/x"))
    assert "a-temporary-key" not in str(caught.value)


@pytest.mark.usefixtures("answering")
@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize(
    ("status", "kind", "told"),
    [
        (401, StorageDenied, r"service account"),
        (403, StorageDenied, r"service account"),
        (503, StorageUnreachable, r"overloaded or failing.*--resume"),
    ],
)
def test_what_google_answers_is_told_with_its_remedy(monkeypatch, asked, status, kind, told):
    monkeypatch.setattr(Answering, "status", status)
    monkeypatch.setattr(gcs, "_PATIENCE_S", 0.5)
    with pytest.raises(kind, match=rf"gs://bucket/x: .*{told}"):
        ASKED[asked](open_location("gs://bucket/x"))


@pytest.mark.parametrize("asked", ASKED)
def test_google_out_of_reach(monkeypatch, asked):
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:1")
    monkeypatch.setattr(gcs, "_PATIENCE_S", 0.5)
    with pytest.raises(StorageUnreachable, match=r"gs://bucket/x: no answer from http://127.0.0.1:1"):
        ASKED[asked](open_location("gs://bucket/x"))
