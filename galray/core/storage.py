"""Folders and buckets alike: open a URI, read and write whole files."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import pyarrow as pa
from pyarrow import fs

from galray.core.errors import ConfigError, InputError, StorageDenied, StorageError, StorageUnreachable

PARTIAL = ".partial"  # ends the name of a local file that is not yet whole
_S3_CONNECT_TIMEOUT_S = 5.0
_S3_REQUEST_TIMEOUT_S = 60.0
_S3_ATTEMPTS = 4
_CREATED_BY_ANOTHER = (409, 412)  # at the same moment, before


class Writable(Protocol):
    """A file that bytes are appended to."""

    def write(self, data: bytes, /) -> int | None: ...


@dataclass(frozen=True)
class Location:
    """A file or folder on some filesystem; cheap to make, safe to send to other processes.

    Attributes
    ----------
    uri : str
        As people write it: an absolute path or ``s3://bucket/prefix``.
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
            return _create_object(self.path, data)

    def children(self) -> list[fs.FileInfo]:
        """List the files and folders right below this folder; none where it is absent."""
        with storage_errors(self.uri):
            try:
                return self.filesystem.get_file_info(fs.FileSelector(self.path, allow_not_found=True))
            except FileNotFoundError:  # pyarrow's, of a local folder that was made while it was looked for
                return []

    def files(self) -> list[fs.FileInfo]:
        """List all files below this folder, however deep; none where it is absent."""
        selector = fs.FileSelector(self.path, recursive=True, allow_not_found=True)
        with storage_errors(self.uri):
            return [info for info in self.filesystem.get_file_info(selector) if info.is_file]

    def delete(self) -> None:
        """Delete a file or a whole folder; nothing happens where there is none."""
        kind = self.kind()
        with storage_errors(self.uri):
            if kind == fs.FileType.Directory:
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


def _create_object(path: str, data: bytes) -> bool:
    """Put an object with If-None-Match, which pyarrow cannot say; boto3 finds the same keys as pyarrow."""
    from boto3.session import Session  # a new one each time: the default one would keep keys that expire
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    settings = Config(
        connect_timeout=_S3_CONNECT_TIMEOUT_S,
        read_timeout=_S3_REQUEST_TIMEOUT_S,
        retries={"total_max_attempts": _S3_ATTEMPTS, "mode": "standard"},
        s3={"addressing_style": "path" if _s3_endpoint() else "auto"},
    )
    bucket, key = path.split("/", 1)
    try:
        client = Session().client(
            "s3", region_name=_s3_region(), endpoint_url=_s3_endpoint(), config=settings
        )
        client.put_object(Bucket=bucket, Key=key, Body=data, IfNoneMatch="*")
    except ClientError as error:
        status = error.response["ResponseMetadata"]["HTTPStatusCode"]
        if status in _CREATED_BY_ANOTHER:
            return False
        raise OSError(f"{error} (HTTP status {status})") from error
    except BotoCoreError as error:
        raise OSError(f"NETWORK_CONNECTION: {error}") from error
    return True


def open_location(uri: str) -> Location:
    """Open a local path or an ``s3://bucket/prefix`` URI.

    Endpoint, region and keys come from the standard AWS variables (``AWS_ENDPOINT_URL``,
    ``AWS_REGION``, ``AWS_ACCESS_KEY_ID``, ...), a profile or the machine's role; they never stand
    in a configuration.

    Raises
    ------
    ConfigError
        For a URI of another kind.
    """
    parts = urlsplit(uri)
    if parts.scheme == "s3":
        bucket, path = parts.netloc, uri.removeprefix("s3://").rstrip("/")
        if not bucket:
            raise ConfigError(f"{uri!r} names no bucket; write s3://bucket/prefix.")
        if "@" in bucket:  # such a URI would be recorded, keys and all
            raise ConfigError("Keys do not belong in a URI: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.")
        return Location(f"s3://{path}", _s3_filesystem(), path)
    if parts.scheme in ("", "file"):
        path = os.path.abspath(os.path.expanduser(parts.path if parts.scheme else uri))
        return Location(path, fs.LocalFileSystem(), path)
    raise ConfigError(f"{uri!r} is no place galray can open; give a local path or s3://bucket/prefix.")


def _s3_filesystem() -> fs.S3FileSystem:
    endpoint = _s3_endpoint()
    if endpoint and "://" not in endpoint:
        raise ConfigError(f"AWS_ENDPOINT_URL is {endpoint!r}; write it with its scheme, http:// or https://.")
    return fs.S3FileSystem(
        region=_s3_region(),
        connect_timeout=_S3_CONNECT_TIMEOUT_S,
        request_timeout=_S3_REQUEST_TIMEOUT_S,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=_S3_ATTEMPTS),
        **({"endpoint_override": endpoint} if endpoint else {}),
    )


def _s3_region() -> str:
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"


def _s3_endpoint() -> str | None:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


_FULL = (errno.ENOSPC, errno.EDQUOT)
_FULL_SIGN = "QuotaExceeded"  # of a bucket; Ceph says it with the status of refused keys
_EXPIRED_SIGNS = ("ExpiredToken", "TokenRefreshRequired", "REQUEST_EXPIRED")
_BAD_WITHOUT_REASON = "(HTTP status 400) during Head"  # no answer to HEAD has a body that could say why
_CLOCK_SIGNS = ("REQUEST_TIME_TOO_SKEWED", "RequestTimeTooSkewed")
_DENIED_SIGNS = (
    "ACCESS_DENIED",
    "INVALID_ACCESS_KEY_ID",
    "SIGNATURE_DOES_NOT_MATCH",
    "INVALID_CLIENT_TOKEN",
    "HTTP code 403",
    "HTTP status code 403",
    "code: 403",
    "HTTP status 403",
)
_UNREACHABLE_SIGNS = ("NETWORK_CONNECTION", "curlCode", "REQUEST_TIMEOUT", "Connection refused")
_FAILING_SIGNS = (
    "SLOW_DOWN",
    "SERVICE_UNAVAILABLE",
    "INTERNAL_FAILURE",
    "HTTP status 500",
    "HTTP status 503",
)


@contextmanager
def storage_errors(uri: str) -> Iterator[None]:
    """Turn what the operating system or the object store says into galray's own errors."""
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(f"{uri} does not exist. Check the path, or run the job that makes it.") from error
    except PermissionError as error:
        raise StorageDenied(f"{uri}: permission denied. Choose another place, or mend its rights.") from error
    except OSError as error:
        raise _storage_error(uri, error) from error


def _storage_error(uri: str, error: OSError) -> StorageError:
    message = str(error)
    if error.errno in _FULL or _FULL_SIGN in message:
        return StorageError(
            f"{uri}: the disk is full, or its quota used up. Make room, then go on with --resume; "
            "or choose another place."
        )
    if denied := _denied(uri, message):
        return denied
    if any(sign in message for sign in _UNREACHABLE_SIGNS):
        return StorageUnreachable(
            f"{uri}: no answer from {_s3_endpoint() or 'AWS S3'}. "
            "Check AWS_ENDPOINT_URL, the region and the network."
        )
    if any(sign in message for sign in _FAILING_SIGNS):
        return StorageUnreachable(
            f"{uri}: the object store answers that it is overloaded or failing, however often it is asked: "
            f"{message}. Wait until it has recovered, then go on with --resume."
        )
    return StorageError(f"{uri}: {message}. Check that the place exists and can be written.")


def _denied(uri: str, message: str) -> StorageDenied | None:
    if any(sign in message for sign in _EXPIRED_SIGNS):
        return StorageDenied(
            f"{uri}: the keys have expired. Get new ones, such as by `aws sso login`, then go on with "
            "--resume; those of a machine's role renew themselves."
        )
    if _BAD_WITHOUT_REASON in message:
        return StorageDenied(
            f"{uri}: the object store refuses without a reason, as it does when keys have expired or "
            "AWS_REGION is not the bucket's. Get new keys or correct it, then go on with --resume."
        )
    if any(sign in message for sign in _CLOCK_SIGNS):
        return StorageDenied(f"{uri}: this machine's clock is wrong. Set it, then go on with --resume.")
    if any(sign in message for sign in _DENIED_SIGNS):
        return StorageDenied(
            f"{uri}: the object store refuses the keys or they lack the right. Check AWS_ACCESS_KEY_ID, "
            "AWS_SECRET_ACCESS_KEY (or the profile or role) and the bucket's policy."
        )
    return None
