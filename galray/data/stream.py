"""Cached galaxies -> training batches, in an order that follows from the seed and the step alone.

A cache is a published folder of Parquet files whose row groups, here blocks, all have the same number
of galaxies but for the last of each file. An epoch takes blocks in random order, a few at a time, and
shuffles the galaxies of those few: so memory does not grow with the number of galaxies, any step of any
epoch can be gone to without reading what comes before it, and the order does not depend on the number of
workers, of which each takes its share of every batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch.utils.data import DataLoader, IterableDataset

from galray.core.cells import from_cells
from galray.core.errors import EmptyInputError, InputError
from galray.core.manifest import Manifest
from galray.core.storage import Location

CACHE_KIND = "cache"
BLOCK_BYTES = 2 << 20  # read at once: large for a disk, small enough that a few of them mix well
BLOCKS_TOGETHER = 32  # shuffled together
_OPEN_FILES = 64
_PREFETCHED_BATCHES = 16

Batch = dict[str, np.ndarray]


@dataclass(frozen=True)
class Column:
    """What a cache holds of each galaxy under one name.

    Attributes
    ----------
    shape : tuple of int
        Of one galaxy's; () for a number.
    dtype : str
        Its numpy type.
    """

    shape: tuple[int, ...]
    dtype: str

    @property
    def bytes(self) -> int:
        """Bytes of one galaxy's."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    def values(self, cells: pa.ChunkedArray) -> np.ndarray:
        """Return cells as they were cached: shape (n, *shape)."""
        return from_cells(cells).view(self.dtype).reshape(len(cells), *self.shape)


@dataclass(frozen=True)
class Block:
    """One row group of a cache file."""

    path: str
    group: int
    rows: int


@dataclass(frozen=True)
class CachedGalaxies:
    """A published cache, read a block at a time.

    Attributes
    ----------
    location : Location
    columns : mapping
        Name -> `Column`, beside ``galaxy_id``, which is always there.
    blocks : tuple of Block
    """

    location: Location
    columns: Mapping[str, Column]
    blocks: tuple[Block, ...]

    @classmethod
    def open(cls, location: Location) -> CachedGalaxies:
        """Open a cache from its manifest alone, however many galaxies it holds.

        Raises
        ------
        InputError
            It is not published, or nothing of this kind.
        """
        manifest = Manifest.read(location, CACHE_KIND)
        form = manifest.lineage
        blocks = [
            Block(record.path, group, min(form["rows_per_block"], (record.rows or 0) - first))
            for record in manifest.files
            for group, first in enumerate(range(0, record.rows or 0, form["rows_per_block"]))
        ]
        columns = {name: Column(tuple(c["shape"]), c["dtype"]) for name, c in form["columns"].items()}
        return cls(location, columns, tuple(blocks))

    def __len__(self) -> int:
        return sum(block.rows for block in self.blocks)

    def read(self, blocks: Sequence[Block], names: Sequence[str] = ()) -> Batch:
        """Return the galaxies of some blocks.

        Parameters
        ----------
        blocks : sequence of Block
        names : sequence of str
            Columns to read; none reads all.

        Returns
        -------
        dict
            ``galaxy_id`` int64 [n], and each column [n, *shape].

        Raises
        ------
        InputError
            A block that is not as the manifest says.
        """
        columns = {name: self.columns[name] for name in names or self.columns}
        tables = [self._read(block, list(columns)) for block in blocks]
        table = pa.concat_tables(tables)
        values = {name: column.values(table[name]) for name, column in columns.items()}
        return {"galaxy_id": table["galaxy_id"].to_numpy(), **values}

    def in_order(self, size: int) -> Iterator[Batch]:
        """Yield all galaxies once, in the cache's order, in batches of at most `size`."""
        for start in range(0, len(self.blocks), BLOCKS_TOGETHER):
            rows = self.read(self.blocks[start : start + BLOCKS_TOGETHER])
            for first in range(0, len(rows["galaxy_id"]), size):
                yield {name: values[first : first + size] for name, values in rows.items()}

    def _read(self, block: Block, names: list[str]) -> pa.Table:
        try:
            table = _open(self.location, block.path).read_row_group(block.group, ["galaxy_id", *names])
        except (OSError, pa.ArrowException) as error:
            raise InputError(
                f"{self.location.uri}/{block.path} cannot be read: {error}. Delete {self.location.uri}: "
                "the next training computes it again."
            ) from error
        if len(table) != block.rows:
            raise InputError(f"{self.location.uri}/{block.path} is not what was published. Delete the cache.")
        return table


@lru_cache(maxsize=_OPEN_FILES)
def _open(location: Location, path: str) -> pq.ParquetFile:
    return pq.ParquetFile(location.filesystem.open_input_file(f"{location.path}/{path}"))


@dataclass(frozen=True)
class TrainingStream(IterableDataset):
    """One worker's share of every batch from some step on, without end.

    Attributes
    ----------
    galaxies : CachedGalaxies
    batch_size : int
        Galaxies in a step, over all workers.
    seed : int
    first_step : int
        The step to begin with, counted from the start of the training.
    rank, workers : int
        Which worker this is, of how many.
    weigh : callable, optional
        Returns of galaxies how likely each is drawn, shape (n,): instead of showing each once, an epoch
        then draws as many as there are with replacement, among those of the blocks that are shuffled
        together.

    Raises
    ------
    EmptyInputError
        There are fewer galaxies than one batch takes.
    """

    galaxies: CachedGalaxies
    batch_size: int
    seed: int = 0
    first_step: int = 0
    rank: int = 0
    workers: int = 1
    weigh: Callable[[Batch], np.ndarray] | None = None

    def __post_init__(self) -> None:
        if len(self.galaxies) < self.batch_size:
            raise EmptyInputError(
                f"{self.galaxies.location.uri} has {len(self.galaxies)} galaxies to train on, fewer than a "
                f"batch of {self.batch_size}. Lower --batch-size, or give more galaxies."
            )

    @cached_property
    def steps_per_epoch(self) -> int:
        """Whole batches in an epoch; the galaxies left over are others in every epoch."""
        return len(self.galaxies) // self.batch_size

    def __iter__(self) -> Iterator[Batch]:
        epoch, first = divmod(self.first_step, self.steps_per_epoch)
        while True:
            yield from self._epoch(epoch, first)
            epoch, first = epoch + 1, 0

    def _epoch(self, epoch: int, first: int) -> Iterator[Batch]:
        """Yield the batches of an epoch from its `first` on; what comes before is not read."""
        left_out = first * self.batch_size
        yielded = first
        batch: Batch = {}
        begun = 0  # galaxies of a batch that the last group could not fill
        for group, (blocks, order) in enumerate(self._groups(epoch)):
            if left_out >= len(order):
                left_out -= len(order)
                continue
            rows = self.galaxies.read(blocks)
            if self.weigh:
                order = _drawn(self.weigh(rows), np.random.default_rng((self.seed, epoch, group)))
            order, left_out = order[left_out:], 0
            for chosen in np.split(order, range(self.batch_size - begun, len(order), self.batch_size)):
                taken = {name: values[chosen] for name, values in rows.items()}
                batch = joined([batch, taken]) if begun else taken
                begun += len(chosen)
                if begun == self.batch_size:
                    yield {name: values[self.rank :: self.workers] for name, values in batch.items()}
                    yielded, begun = yielded + 1, 0
        assert (
            yielded == self.steps_per_epoch
        )  # otherwise positions would not be what resuming takes them for

    def _groups(self, epoch: int) -> Iterator[tuple[list[Block], np.ndarray]]:
        """Yield the blocks that are shuffled together, with the order of their galaxies."""
        random = np.random.default_rng((self.seed, epoch))
        shuffled = random.permutation(len(self.galaxies.blocks))
        for start in range(0, len(shuffled), BLOCKS_TOGETHER):
            blocks = [self.galaxies.blocks[i] for i in shuffled[start : start + BLOCKS_TOGETHER]]
            yield blocks, random.permutation(sum(block.rows for block in blocks))


def joined(parts: Sequence[Mapping[str, np.ndarray]]) -> Batch:
    """Return the galaxies of some batches as one."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _drawn(weights: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Draw as many rows as there are, with replacement; all alike where none has a weight."""
    total = weights.sum()
    return random.choice(len(weights), len(weights), p=weights / total if total else None)


@dataclass(frozen=True)
class MixedStream(IterableDataset):
    """Batches of several streams joined, step by step: real galaxies first, then synthetic ones.

    Attributes
    ----------
    streams : tuple of TrainingStream
        With the same columns.
    """

    streams: tuple[TrainingStream, ...]

    def __iter__(self) -> Iterator[Batch]:
        yield from map(joined, zip(*self.streams, strict=True))


def loader(stream: IterableDataset, processes: int, *, pin_memory: bool = False) -> DataLoader:
    """Load a stream's batches as tensors, read ahead by a process of its own where `processes` is 1."""
    apart: dict[str, Any] = {}
    if processes:
        # spawn: the object store's client does not survive a fork
        apart = {"multiprocessing_context": "spawn", "prefetch_factor": _PREFETCHED_BATCHES}
    return DataLoader(stream, batch_size=None, num_workers=processes, pin_memory=pin_memory, **apart)
