"""Folders and buckets alike: open a URI, read and write whole files."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import IO, NamedTuple, Protocol
from urllib.parse import urlsplit

import pyarrow as pa
from pyarrow import fs

from galray.core import gcs, s3
from galray.core.errors import ConfigError, InputError, StorageDenied, StorageError

PARTIAL = ".partial"  # ends the name of a local file that is not yet whole


class Store(NamedTuple):
    """A kind of object store: how it is opened, a file created in it, and what it says in galray's words.

    `create` writes a small file where none stands and returns whether none stood; pyarrow cannot say that.
    """

    filesystem: Callable[[], fs.FileSystem]
    create: Callable[[str, bytes], bool]
    told: Callable[[str, str], StorageError | None]


_STORES = {
    "s3": Store(s3.filesystem, s3.create, s3.told),
    "gs": Store(gcs.filesystem, gcs.create, gcs.told),
}


class Writable(Protocol):
    """A file that bytes are appended to."""

    def write(self, data: bytes, /) -> int | None: ...


@dataclass(frozen=True)
class Location:
    """A file or folder on some filesystem; cheap to make, safe to send to other processes.

    Attributes
    ----------
    uri : str
        As people write it: an absolute path, ``s3://bucket/prefix`` or ``gs://bucket/prefix``.
    filesystem : pyarrow.fs.FileSystem
    path : str
        The same place in the filesystem's own terms.
    """

    uri: str
    filesystem: fs.FileSystem = field(compare=False)
    path: str

    def __truediv__(self, name: str) -> Location:
        return Location(f"{self.uri}/{name}", self.filesystem, f"{self.path}/{name}")

    @property
    def name(self) -> str:
        return self.path.rsplit("/", 1)[-1]

    @property
    def folder(self) -> Location:
        """What it lies in."""
        return Location(self.uri.rsplit("/", 1)[0], self.filesystem, self.path.rsplit("/", 1)[0])

    @property
    def is_local(self) -> bool:
        return isinstance(self.filesystem, fs.LocalFileSystem)

    def kind(self) -> fs.FileType:
        """Return whether a file, a folder or nothing stands here."""
        with storage_errors(self.uri):
            return self.filesystem.get_file_info(self.path).type

    def exists(self) -> bool:
        return self.kind() != fs.FileType.NotFound

    def read_bytes(self) -> bytes:
        """Return the whole file; InputError where there is none."""
        with (
            storage_errors(self.uri),
            self.filesystem.open_input_stream(self.path, compression=None) as stream,
        ):
            return stream.read()

    def open_whole(self) -> IO[bytes]:
        """Open a file of which all will be read: a local one where it lies, an object once it is here.

        Raises
        ------
        InputError
            Where there is none.
        """
        if not self.is_local:
            return BytesIO(self.read_bytes())
        with storage_errors(self.uri):
            return open(self.path, "rb")

    def write_bytes(self, data: bytes) -> None:
        """Write a whole file: readers see all of it or nothing."""
        with self.writing() as file:
            file.write(data)

    @contextmanager
    def writing(self) -> Iterator[Writable]:
        """Open a file that appears when the block ends, and not at all where the block fails.

        A local file is written under another name and renamed. An object is gathered in memory and
        sent at the end: an upload cut short would stand there as if it were whole.
        """
        with storage_errors(self.uri):
            if self.is_local:
                with _renamed_at_the_end(self.path) as file:
                    yield file
            else:
                buffer = pa.BufferOutputStream()
                yield buffer
                with self.filesystem.open_output_stream(self.path, compression=None) as stream:
                    stream.write(buffer.getvalue())

    def create(self, data: bytes) -> bool:
        """Write a small file where none stands; of several processes that try at once, one succeeds.

        Returns
        -------
        bool
            False where a file stands already. A lost answer makes an object store be asked again, and
            the second time it finds the first one's file: compare what stands with `data`.
        """
        with storage_errors(self.uri):
            if self.is_local:
                return _create_file(self.path, data)
            return _STORES[urlsplit(self.uri).scheme].create(self.path, data)

    def children(self) -> list[fs.FileInfo]:
        """List the files right below this folder; none where it is absent."""
        try:
            return self._files(recursive=False)
        except InputError:  # pyarrow's, of a local folder that was made while it was looked for
            return []

    def files(self) -> list[fs.FileInfo]:
        """List all files below this folder, however deep; none where it is absent.

        Of folders only what they hold is ever listed: on ``gs://`` nothing else says that they are there.
        """
        return self._files(recursive=True)

    def names(self) -> list[str]:
        """List the same files by how they are called from this folder: ``self / name`` is each."""
        return [info.path[len(self.path) + 1 :] for info in self.files()]

    def _files(self, recursive: bool) -> list[fs.FileInfo]:
        selector = fs.FileSelector(self.path, recursive=recursive, allow_not_found=True)
        with storage_errors(self.uri):
            return [info for info in self.filesystem.get_file_info(selector) if info.is_file]

    def delete(self) -> None:
        """Delete a file or a whole folder; nothing happens where there is none."""
        kind = self.kind()
        with storage_errors(self.uri):
            if kind == fs.FileType.Directory:
                with suppress(FileNotFoundError):  # the mark of a folder, which gs:// seldom has
                    self.filesystem.delete_dir(self.path)
            elif kind == fs.FileType.File:
                self.filesystem.delete_file(self.path)


@contextmanager
def _partial(path: str) -> Iterator[Path]:
    """Name a file beside `path` for what is not yet whole; nothing is left of it."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    partial = Path(f"{path}.{uuid.uuid4().hex}{PARTIAL}")
    try:
        yield partial
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def _renamed_at_the_end(path: str) -> Iterator[Writable]:
    with _partial(path) as partial:
        with open(partial, "wb") as file:
            yield file
        os.replace(partial, path)


def _create_file(path: str, data: bytes) -> bool:
    """Link a file that is whole to its name: a reader never finds it empty, and no other is replaced."""
    with _partial(path) as partial:
        partial.write_bytes(data)
        try:
            os.link(partial, path)
        except FileExistsError:
            return False
    return True


def open_location(uri: str) -> Location:
    """Open a local path, or an ``s3://bucket/prefix`` or ``gs://bucket/prefix`` URI.

    Endpoint, region and keys come from the standard AWS variables (``AWS_ENDPOINT_URL``,
    ``AWS_REGION``, ``AWS_ACCESS_KEY_ID``, ...), a profile or the machine's role, and on Google Cloud from
    its application default credentials; they never stand in a configuration.

    Raises
    ------
    ConfigError
        For a URI of another kind.
    """
    parts = urlsplit(uri)
    if store := _STORES.get(parts.scheme):
        path = uri.removeprefix(f"{parts.scheme}://").rstrip("/")
        if not parts.netloc:
            raise ConfigError(f"{uri!r} names no bucket; write {parts.scheme}://bucket/prefix.")
        if "@" in parts.netloc:  # such a URI would be recorded, keys and all
            raise ConfigError(
                "Keys do not belong in a URI: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or Google's."
            )
        return Location(f"{parts.scheme}://{path}", store.filesystem(), path)
    if parts.scheme in ("", "file"):
        path = os.path.abspath(os.path.expanduser(parts.path if parts.scheme else uri))
        return Location(path, fs.LocalFileSystem(), path)
    raise ConfigError(
        f"{uri!r} is no place galray can open; give a local path, s3://bucket/prefix or gs://bucket/prefix."
    )


_FULL = (errno.ENOSPC, errno.EDQUOT)
_FULL_SIGN = "QuotaExceeded"  # of a bucket; Ceph says it with the status of refused keys


@contextmanager
def storage_errors(uri: str) -> Iterator[None]:
    """Turn what the operating system or the object store says into galray's own errors."""
    try:
        yield
    except OSError as error:
        raise _in_our_words(uri, error) from error


def _in_our_words(uri: str, error: OSError) -> InputError | StorageError:
    message, store = str(error), _STORES.get(urlsplit(uri).scheme)
    if isinstance(error, FileNotFoundError):
        return InputError(f"{uri} does not exist. Check the path, or run the job that makes it.")
    if error.errno in _FULL or _FULL_SIGN in message:
        return StorageError(
            f"{uri}: the disk is full, or its quota used up. Make room, then go on with --resume; "
            "or choose another place."
        )
    if store and (told := store.told(uri, message)):
        return told
    if isinstance(error, PermissionError):
        return StorageDenied(f"{uri}: permission denied. Choose another place, or mend its rights.")
    return StorageError(f"{uri}: {message}. Check that the place exists and can be written.")
