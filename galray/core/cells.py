"""Arrays in table columns: cells of a fixed size, taken in and out without a copy."""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from galray.core.schema import N_ANSWERS


def to_cells(values: np.ndarray) -> pa.Array:
    """Return an array of any type, shape (n, ...), as n cells of bytes."""
    width = int(np.prod(values.shape[1:])) * values.itemsize
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(values), [None, pa.py_buffer(values)])


def from_cells(column: pa.ChunkedArray) -> np.ndarray:
    """Return a column of cells as bytes, uint8 (n, width)."""
    cells = column.combine_chunks()
    width = cells.type.byte_width
    values = np.frombuffer(cells.buffers()[1], np.uint8, len(cells) * width, cells.offset * width)
    return values.reshape(len(cells), width)


def list_cells(values: np.ndarray) -> pa.Array:
    """Return an array, shape (n, ...), as n lists of numbers of one length."""
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), int(np.prod(values.shape[1:])))


def votes_array(galaxies: pa.Table) -> np.ndarray:
    """Return the votes column as float32, shape (n, 37)."""
    votes = galaxies["votes"].combine_chunks()
    return votes.flatten().to_numpy(zero_copy_only=False).reshape(-1, N_ANSWERS)


def cache_table(batch: Mapping[str, np.ndarray]) -> pa.Table:
    """Return galaxies as a cache is written from: ``galaxy_id``, each column in cells, no ``reason``."""
    cells = {name: to_cells(np.ascontiguousarray(v)) for name, v in batch.items() if name != "galaxy_id"}
    count = len(batch["galaxy_id"])
    return pa.table({"galaxy_id": batch["galaxy_id"], **cells, "reason": pa.nulls(count, pa.string())})
