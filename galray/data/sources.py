"""Where the bytes of images lie: a folder or prefix, a zip archive, a column of a Parquet file."""

from __future__ import annotations

import itertools
import os
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Protocol

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from galray.core.errors import ImageRejected, InputError
from galray.core.storage import Location, storage_errors

Bytes = bytes | ImageRejected
_LARGEST_IMAGE_BYTES = 64 << 20
_S3_READERS = 16  # requests in flight: a bucket answers many slowly rather than one fast


class ImageSource(Protocol):
    """Somewhere that holds images by name; cheap to send to workers."""

    @property
    def location(self) -> Location: ...

    def names(self) -> Iterator[str]:
        """List every file that is there."""
        ...

    def read(self, names: Sequence[str]) -> list[Bytes]:
        """Read some of them; what cannot be read is returned as a rejection, in its place."""
        ...


def open_source(location: Location) -> ImageSource:
    """Open a folder, a prefix in a bucket or a ``.zip``.

    Raises
    ------
    InputError
        Where nothing of the kind stands.
    """
    if location.name.lower().endswith(".zip"):
        return ZipSource(location)
    if location.kind() != fs.FileType.Directory:
        raise InputError(f"{location.uri} is neither a folder nor a .zip of images. Check --images.")
    return FolderSource(location)


@dataclass(frozen=True)
class FolderSource:
    """Images below a folder or an object-store prefix."""

    location: Location

    def names(self) -> Iterator[str]:
        return iter(self.location.names())

    def read(self, names: Sequence[str]) -> list[Bytes]:
        if self.location.is_local:
            return [self._read_one(name) for name in names]
        with ThreadPoolExecutor(_S3_READERS) as readers:
            return list(readers.map(self._read_one, names))

    def _read_one(self, name: str) -> Bytes:
        try:
            if self.location.is_local:
                return _read_local(f"{self.location.path}/{name}")
            return (self.location / name).read_bytes()
        except FileNotFoundError:
            return ImageRejected("missing_image", f"{self.location.uri}/{name} does not exist")
        except InputError as error:
            return ImageRejected("missing_image", str(error))
        except OSError as error:
            return ImageRejected("unreadable_file", f"{self.location.uri}/{name}: {error}")


def _read_local(path: str) -> Bytes:
    with open(path, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        if size > _LARGEST_IMAGE_BYTES:
            return ImageRejected("unreadable_file", f"{path} has {size} bytes: too large for an image")
        return file.readall()


@dataclass(frozen=True)
class ZipSource:
    """Images in a zip archive, read in place."""

    location: Location

    def names(self) -> Iterator[str]:
        archive = _open_zip(self.location)
        return (entry.filename for entry in archive.infolist() if not entry.is_dir())

    def read(self, names: Sequence[str]) -> list[Bytes]:
        archive = _open_zip(self.location)
        return [self._read_one(archive, name) for name in names]

    def _read_one(self, archive: zipfile.ZipFile, name: str) -> Bytes:
        if climbs_out(name):
            return ImageRejected("unsafe_path", f"{self.location.uri} holds {name!r}")
        try:
            entry = archive.getinfo(name)
            if entry.file_size > _LARGEST_IMAGE_BYTES:
                return ImageRejected("decompression_bomb", f"{name} unpacks to {entry.file_size} bytes")
            return archive.read(entry)
        except KeyError:
            return ImageRejected("missing_image", f"{self.location.uri} holds no {name!r}")
        except (zipfile.BadZipFile, OSError, NotImplementedError, RuntimeError, EOFError) as error:
            return ImageRejected("unreadable_file", f"{self.location.uri}, {name}: {error}")


@lru_cache(maxsize=4)  # a worker reads many batches; the directory of a large archive takes a second
def _open_zip(location: Location) -> zipfile.ZipFile:
    with storage_errors(location.uri):
        file = location.filesystem.open_input_file(location.path)
    try:
        return zipfile.ZipFile(file)  # pyright: ignore[reportArgumentType] (seekable and readable is enough)
    except zipfile.BadZipFile as error:
        raise InputError(f"{location.uri} is not a whole zip archive: {error}. Fetch it again.") from error


def climbs_out(name: str) -> bool:
    """Say whether an archive entry's path leaves the archive's folder."""
    path = PurePosixPath(name.replace("\\", "/"))
    return path.is_absolute() or ".." in path.parts or (len(name) > 1 and name[1] == ":")


@dataclass(frozen=True)
class ParquetSource:
    """The ``image`` column of Parquet files; a name is ``file#row group#row``."""

    location: Location

    def files(self) -> list[str]:
        """List the Parquet files below the folder, or an empty name for the one file given."""
        if self.location.kind() == fs.FileType.File:
            return [""]
        return sorted(name for name in self.location.names() if name.endswith(".parquet"))

    def open(self, name: str) -> pq.ParquetFile:
        place = self.location / name if name else self.location
        with storage_errors(place.uri):
            try:
                return pq.ParquetFile(place.path, filesystem=place.filesystem)
            except pa.ArrowInvalid as error:
                raise InputError(
                    f"{place.uri} is not a whole Parquet file: {error}. Fetch it again."
                ) from error

    def names(self) -> Iterator[str]:
        for file in self.files():
            groups = self.open(file).metadata
            for group in range(groups.num_row_groups):
                yield from self.names_of(file, group, groups.row_group(group).num_rows)

    @staticmethod
    def names_of(file: str, group: int, rows: int) -> list[str]:
        return [f"{file}#{group}#{row}" for row in range(rows)]

    def read(self, names: Sequence[str]) -> list[Bytes]:
        images: list[Bytes] = []
        for group, members in itertools.groupby(names, key=lambda name: name.rsplit("#", 1)[0]):
            file, number = group.rsplit("#", 1)
            cells = self._cells(file, int(number))
            for name in members:
                cell = cells[int(name.rsplit("#", 1)[1])].as_py()
                images.append(ImageRejected("missing_image", f"{name}: empty cell") if cell is None else cell)
        return images

    def _cells(self, file: str, group: int) -> pa.ChunkedArray:
        place = f"{self.location.uri}/{file}".rstrip("/")
        try:
            cells = self.open(file).read_row_group(group, columns=["image"])["image"]
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{place}, row group {group}, is damaged: {error}. Fetch it again.") from error
        if not (pa.types.is_binary(cells.type) or pa.types.is_large_binary(cells.type)):
            raise InputError(
                f"{place}: the column image holds {cells.type}; give each cell the bytes of a JPEG or PNG."
            )
        return cells
