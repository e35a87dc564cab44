"""Images by name from folders, archives and Parquet; what cannot be read is told in its place."""

import io
import os
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from galray.core.errors import ImageRejected, InputError
from galray.core.storage import open_location
from galray.data import sources
from galray.data.sources import ParquetSource, climbs_out, open_source


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images/deep").mkdir(parents=True)
    (tmp_path / "images/1.jpg").write_bytes(b"one")
    (tmp_path / "images/deep/2.jpg").write_bytes(b"two")
    return open_location(str(tmp_path / "images"))


def archive(tmp_path, entries):
    with zipfile.ZipFile(tmp_path / "images.zip", "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in entries.items():
            file.writestr(name, data)
    return open_location(str(tmp_path / "images.zip"))


def reasons(images):
    return [image.reason if isinstance(image, ImageRejected) else image for image in images]


def test_a_folder(folder):
    source = open_source(folder)
    assert sorted(source.names()) == ["1.jpg", "deep/2.jpg"]
    assert source.read(["deep/2.jpg", "1.jpg"]) == [b"two", b"one"]


def test_a_file_that_is_gone(folder):
    assert reasons(open_source(folder).read(["1.jpg", "3.jpg"])) == [b"one", "missing_image"]


def test_a_name_that_is_no_file(folder):
    assert reasons(open_source(folder).read(["deep"])) == ["unreadable_file"]


def test_a_file_too_large_is_not_read(folder, monkeypatch):
    monkeypatch.setattr(sources, "_LARGEST_IMAGE_BYTES", 2)
    assert reasons(open_source(folder).read(["1.jpg"])) == ["unreadable_file"]


def test_a_zip(tmp_path):
    source = open_source(archive(tmp_path, {"a/1.jpg": b"one", "a/2.jpg": b"two"}))
    assert list(source.names()) == ["a/1.jpg", "a/2.jpg"]
    assert reasons(source.read(["a/2.jpg", "a/9.jpg"])) == [b"two", "missing_image"]


def test_a_zip_entry_that_unpacks_to_too_much(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "_LARGEST_IMAGE_BYTES", 1000)
    source = open_source(archive(tmp_path, {"bomb.jpg": bytes(10_000_000)}))
    assert reasons(source.read(["bomb.jpg"])) == ["decompression_bomb"]


def test_a_damaged_zip_entry_costs_only_itself(tmp_path):
    location = archive(tmp_path, {"1.jpg": os.urandom(1000), "2.jpg": b"two"})
    data = bytearray((tmp_path / "images.zip").read_bytes())
    data[200] ^= 0xFF
    (tmp_path / "images.zip").write_bytes(data)
    assert reasons(open_source(location).read(["1.jpg", "2.jpg"])) == ["unreadable_file", b"two"]


def test_an_entry_that_climbs_out_is_not_read(tmp_path):
    source = open_source(archive(tmp_path, {"../1.jpg": b"one"}))
    assert reasons(source.read(["../1.jpg"])) == ["unsafe_path"]


@pytest.mark.parametrize(
    ("name", "out"),
    [
        ("a/b.jpg", False),
        ("a..b/c...jpg", False),
        ("./a.jpg", False),
        ("../a.jpg", True),
        ("a/../../b.jpg", True),
        ("/etc/a.jpg", True),
        ("..\\a.jpg", True),
        ("C:\\a.jpg", True),
        ("\\\\host\\a.jpg", True),
    ],
)
def test_paths_that_climb_out(name, out):
    assert climbs_out(name) is out


@pytest.mark.parametrize("name", ["nothing", "nothing.zip", "file.txt"])
def test_what_is_no_source(tmp_path, name):
    (tmp_path / "file.txt").write_bytes(b"")
    with pytest.raises(InputError, match=name):
        list(open_source(open_location(str(tmp_path / name))).names())


def test_half_a_zip(tmp_path):
    location = archive(tmp_path, {"1.jpg": b"one"})
    (tmp_path / "images.zip").write_bytes(location.read_bytes()[:40])
    with pytest.raises(InputError, match="not a whole zip"):
        list(open_source(location).names())


@pytest.fixture
def parquet(tmp_path):
    for part in range(2):
        images = [f"{part}-{row}".encode() for row in range(5)]
        table = pa.table({"image": pa.array([*images[:4], None], pa.binary())})
        pq.write_table(table, tmp_path / f"part-{part}.parquet", row_group_size=2)
    return open_location(str(tmp_path))


def test_parquet_by_row_group(parquet):
    source = ParquetSource(parquet)
    names = list(source.names())
    assert len(names) == 10
    assert names[3] == "part-0.parquet#1#1"
    wanted = ["part-1.parquet#1#0", "part-1.parquet#1#1", "part-0.parquet#2#0", "part-0.parquet#0#0"]
    assert reasons(source.read(wanted)) == [b"1-2", b"1-3", "missing_image", b"0-0"]


def test_one_parquet_file(parquet):
    source = ParquetSource(parquet / "part-1.parquet")
    assert source.read([next(iter(source.names()))]) == [b"1-0"]


def test_a_damaged_parquet_file(parquet):
    (parquet / "part-1.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"part-1\.parquet is not a whole Parquet file"):
        list(ParquetSource(parquet).names())


def test_an_image_column_of_another_kind(parquet):
    buffer = io.BytesIO()
    pq.write_table(pa.table({"image": [{"bytes": b"x", "path": "y"}]}), buffer)
    (parquet / "part-0.parquet").write_bytes(buffer.getvalue())
    with pytest.raises(InputError, match=r"part-0\.parquet: .*image.* holds struct"):
        ParquetSource(parquet).read(["part-0.parquet#0#0"])
