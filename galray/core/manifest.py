"""Published folders: data first, ``manifest.json`` last, or not there at all.

The manifest names every file with its checksum. Readers trust only the manifest, so that nothing
half-written is ever read as whole. While a folder is being written it holds a claim, ``unfinished.json``
(`galray.core.claims`).
"""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.fs import FileType

import galray
from galray.core import claims
from galray.core.claims import UNFINISHED, Claim, is_claim
from galray.core.errors import InputError, LineageError, PublishError
from galray.core.schema import SCHEMA_VERSION, fingerprint
from galray.core.storage import Location, Writable, open_location

MANIFEST = "manifest.json"
ROWS_PER_ROW_GROUP = 1024


@dataclass(frozen=True)
class FileRecord:
    """One file of a published folder.

    Attributes
    ----------
    path : str
        Relative to the folder.
    bytes : int
    sha256 : str
    rows : int or None
        Rows of a table; None for any other file.
    """

    path: str
    bytes: int
    sha256: str
    rows: int | None = None

    @classmethod
    def of(cls, path: str, data: bytes, rows: int | None = None) -> FileRecord:
        return cls(path, len(data), hashlib.sha256(data).hexdigest(), rows)


@dataclass(frozen=True)
class Manifest:
    """What a published folder says of itself; the last file written into it.

    Attributes
    ----------
    kind : str
        galaxies, denoiser, synthetic, classifier, search, scores, candidates, survey, ...
    files : tuple of FileRecord
    counts : dict
        Row counts by name; for what takes rows in, ``rows_in = rows_out + rejects``.
    config : dict
        The resolved configuration of the job that wrote it.
    parents : dict
        URI -> fingerprint of the manifests, or files, that it was made from.
    lineage : dict
        What was seen on the way, such as ``{"trained_on": [...], "splits": [...]}``.
    """

    kind: str
    files: tuple[FileRecord, ...] = ()
    counts: dict[str, int] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    parents: dict[str, str] = field(default_factory=dict)
    lineage: dict[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION
    code_version: str = ""
    created_utc: str = ""

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with any file or count."""
        return fingerprint(json.dumps([self.kind, [asdict(f) for f in self.files], self.counts]))

    @classmethod
    def read(cls, location: Location, kind: str | None = None) -> Manifest:
        """Read the manifest of a published folder.

        Raises
        ------
        InputError
            Where there is none (the folder is unfinished, or nothing of galray's), where it is of
            another kind than asked for, or of a newer schema.
        """
        if not (location / MANIFEST).exists():
            state = "is unfinished" if (location / UNFINISHED).exists() else "does not hold galray's output"
            raise InputError(f"{location.uri} {state}: no {MANIFEST}. Run the job that makes it to its end.")
        try:
            content = json.loads((location / MANIFEST).read_bytes())
            if content["schema_version"] > SCHEMA_VERSION:
                raise InputError(f"{location.uri} was written by a newer galray; upgrade this one.")
            manifest = cls(**{**content, "files": tuple(FileRecord(**f) for f in content["files"])})
        except (ValueError, TypeError, LookupError) as error:
            raise InputError(
                f"{location.uri}/{MANIFEST} is damaged: {error!r}. Make it again, elsewhere."
            ) from error
        if kind and manifest.kind != kind:
            raise InputError(f"{location.uri} holds {manifest.kind!r}, but {kind!r} is needed here.")
        return manifest

    def paths(self, location: Location, folder: str = "") -> list[str]:
        """Return the filesystem paths of the files, those below `folder` only if it is given."""
        prefix = f"{folder}/" if folder else ""
        return [f"{location.path}/{f.path}" for f in self.files if f.path.startswith(prefix)]


class Publication:
    """A folder that is being written; `publish` makes one and ends it with its manifest."""

    def __init__(self, location: Location) -> None:
        self.location = location
        self.counts: dict[str, int] = {}
        self.lineage: dict[str, Any] = {}
        self._files: dict[str, FileRecord] = {}

    def add(self, records: FileRecord | Sequence[FileRecord]) -> None:
        """Take note of files that are already written, by this process or by workers."""
        for record in [records] if isinstance(records, FileRecord) else records:
            self._files[record.path] = record

    def write(self, path: str, data: bytes | str, rows: int | None = None) -> FileRecord:
        """Write one file into the folder and take note of it."""
        content = data.encode() if isinstance(data, str) else data
        (self.location / path).write_bytes(content)
        record = FileRecord.of(path, content, rows)
        self.add(record)
        return record

    def add_folder(self, folder: Path) -> None:
        """Copy a local folder's files into the publication."""
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            self.write(file.relative_to(folder).as_posix(), file.read_bytes())

    @property
    def started(self) -> bool:
        """Whether any file was written, by this run or one before it."""
        return any(not is_claim(info.base_name) for info in self.location.files())

    @property
    def files(self) -> tuple[FileRecord, ...]:
        return tuple(self._files[path] for path in sorted(self._files))


def is_published(location: Location, kind: str) -> bool:
    """Say whether a folder is a published one of a kind."""
    return (location / MANIFEST).exists() and Manifest.read(location).kind == kind


def standing(location: Location, kind: str, resume: bool) -> Manifest | None:
    """Say whether an output is already there.

    Returns
    -------
    Manifest or None
        The manifest of what stands, when `resume` allows to keep it; None when the work is to do.

    Raises
    ------
    PublishError
        Something stands there and `resume` is not given, or another run is writing there: nothing is
        ever overwritten.
    """
    if (location / MANIFEST).exists():
        if resume:
            return Manifest.read(location, kind)
        raise _already_published(location)
    claims.check_free(location, resume)
    return None


def _already_published(location: Location) -> PublishError:
    return PublishError(
        f"{location.uri} is already published. Give --resume to keep it, another --output, "
        "or delete the folder to start over."
    )


@contextmanager
def publish(
    location: Location,
    kind: str,
    config: Mapping[str, Any] | None = None,
    parents: Mapping[str, str] | None = None,
) -> Iterator[Publication]:
    """Write a folder that is whole or not there: data first, ``manifest.json`` last.

    Parameters
    ----------
    location : Location
    kind : str
        What the folder holds; readers ask for it.
    config : mapping
        The resolved configuration; with its ``resume``, an earlier run's unfinished work is taken over.
    parents : mapping
        URI -> manifest fingerprint of what it is made from.

    Raises
    ------
    StorageError
        Where the place cannot be written; found before any work is done.
    PublishError
        Another run has the place: found before any work is done, or, where somebody has this run's work
        taken over while it was alive, before the manifest is written.
    """
    claim = _claim(location, kind, resume=bool((config or {}).get("resume")))
    publication = Publication(location)
    try:
        yield publication
        claims.check_held(location, claim)
    except BaseException:
        _give_up(publication, claim)
        raise
    manifest = Manifest(
        kind=kind,
        files=publication.files,
        counts=dict(publication.counts),
        config=dict(config or {}),
        parents=dict(parents or {}),
        lineage=publication.lineage,
        code_version=code_version(),
        created_utc=_now(),
    )
    (location / MANIFEST).write_bytes(json.dumps(asdict(manifest), indent=1).encode())
    claims.release(location)


def _claim(location: Location, kind: str, resume: bool) -> Claim:
    held = claims.check_free(location, resume)
    claim = Claim.of_this_process(held.number + 1 if held else 1, kind, _now(), code_version())
    claims.take(location, claim)
    if (location / MANIFEST).exists():  # published, and its claim released, since the job looked
        claims.release(location)
        raise _already_published(location)
    return claim


def _give_up(publication: Publication, claim: Claim) -> None:
    """Leave unfinished work for --resume, and no trace where there is none; nothing of another run's."""
    location = publication.location
    if claims.holder(location) != claim:
        return
    if publication.started:
        claims.stop(location, claim, _now())
    else:
        claims.release(location)


def file_fingerprint(location: Location) -> str:
    """Return 16 hexadecimal digits that identify a file's content."""
    return fingerprint(location.read_bytes())


def ancestry(location: Location) -> dict[str, Manifest]:
    """Return every manifest that a published folder descends from, by URI, itself included.

    Raises
    ------
    LineageError
        Where an ancestor is gone or has changed, so that its history cannot be vouched for.
    """
    found: dict[str, Manifest] = {}
    _collect_ancestry(location, found)
    return found


def _collect_ancestry(location: Location, found: dict[str, Manifest]) -> None:
    manifest = found[location.uri] = Manifest.read(location)
    for uri, known in manifest.parents.items():
        parent = open_location(uri)
        if parent.kind() == FileType.File:  # a list, which has no history
            if file_fingerprint(parent) != known:
                raise LineageError(f"{location.uri} was made with another version of {uri}. Make it again.")
            continue
        if uri not in found:
            try:
                _collect_ancestry(parent, found)
            except InputError as error:
                raise LineageError(f"{location.uri} was made from {uri}, which is gone: {error}") from error
        if found[uri].fingerprint != known:
            raise LineageError(
                f"{location.uri} was made from another version of {uri}. Make it again from this one."
            )


@contextmanager
def local_folder(location: Location, kind: str) -> Iterator[Path]:
    """Give a published folder as a local path, its files checked against the manifest.

    A bucket's folder is copied to a temporary one, which is removed at the end.

    Raises
    ------
    InputError
        Where it is not published, or a file is not the one that was.
    """
    manifest = Manifest.read(location, kind)
    with tempfile.TemporaryDirectory() as copy:
        root = Path(location.path if location.is_local else copy)
        for record in manifest.files:
            data = (location / record.path).read_bytes()
            if hashlib.sha256(data).hexdigest() != record.sha256:
                raise InputError(f"{location.uri}/{record.path} is not what was published. Make it again.")
            if not location.is_local:
                (root / record.path).parent.mkdir(parents=True, exist_ok=True)
                (root / record.path).write_bytes(data)
        yield root


def write_parquet(
    location: Location, path: str, table: pa.Table, rows_per_row_group: int = ROWS_PER_ROW_GROUP
) -> FileRecord:
    """Write a table as one Parquet file below `location` and return its record.

    Binary columns hold images, which are compressed already, or latents, which are mostly noise: no codec,
    dictionary or extremes.
    """
    plain = [_parquet_path(field) for field in table.schema if not _is_bulk(field.type)]
    options: dict[str, Any] = {
        "compression": dict.fromkeys(plain, "zstd"),
        "use_dictionary": plain,
        "write_statistics": plain,
    }
    with (location / path).writing() as file:
        sink = _Checksummed(file)
        pq.write_table(table, sink, row_group_size=rows_per_row_group, **options)
    return FileRecord(path, sink.bytes, sink.sha256.hexdigest(), table.num_rows)


class _Checksummed(io.RawIOBase):
    """A file to write, which counts and checksums what passes: a shard is never held as a whole."""

    def __init__(self, file: Writable) -> None:
        self._file = file
        self.bytes = 0
        self.sha256 = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.bytes

    def write(self, data: Any) -> int:
        self._file.write(data)
        self.sha256.update(data)
        self.bytes += len(data)
        return len(data)


def _is_bulk(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_fixed_size_binary(kind)


def _parquet_path(field: pa.Field) -> str:
    nested = pa.types.is_list(field.type) or pa.types.is_fixed_size_list(field.type)
    return f"{field.name}.list.element" if nested else field.name


@cache
def code_version() -> str:
    """Return galray's version, with the commit where it runs from a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return galray.__version__
    return f"{galray.__version__}+{commit}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
