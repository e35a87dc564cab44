"""The order of training batches: from the seed and the step alone, whoever reads them."""

from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from galray.core.cells import to_cells
from galray.core.errors import EmptyInputError, InputError
from galray.core.manifest import publish, write_parquet
from galray.core.schema import N_ANSWERS
from galray.core.storage import Location, open_location
from galray.data import stream
from galray.data.stream import CACHE_KIND, CachedGalaxies, Column, MixedStream, TrainingStream

ROWS_PER_BLOCK, FILES, ROWS_PER_FILE = 4, 5, 23
ROWS = FILES * ROWS_PER_FILE
SHAPE = (2, 2, 3)
COLUMNS = {
    "votes": Column((N_ANSWERS,), "float32"),
    "cached": Column(SHAPE, "uint8"),
    "is_rare": Column((), "int64"),
}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CachedGalaxies:
    """115 galaxies in five files, in blocks of four and last ones of three; three blocks mix at a time."""
    monkeypatch.setattr(stream, "BLOCKS_TOGETHER", 3)
    location = open_location(str(tmp_path / "cache"))
    with publish(location, CACHE_KIND) as publication:
        for k in range(FILES):
            ids = np.arange(k * ROWS_PER_FILE, (k + 1) * ROWS_PER_FILE)
            publication.add(write_parquet(location, f"shards/{k}.parquet", table(ids), ROWS_PER_BLOCK))
        columns = {name: asdict(column) for name, column in COLUMNS.items()}
        publication.lineage = {"columns": columns, "rows_per_block": ROWS_PER_BLOCK}
    return CachedGalaxies.open(location)


def table(ids: np.ndarray) -> pa.Table:
    """Return galaxies whose every number says which one it is; one in 23 is rare."""
    values = {
        "votes": np.repeat(ids[:, None] / ROWS, N_ANSWERS, axis=1).astype(np.float32),
        "cached": np.repeat(ids, 12).reshape(-1, *SHAPE).astype(np.uint8),
        "is_rare": (ids % ROWS_PER_FILE == 0).astype(np.int64),
    }
    return pa.table({"galaxy_id": ids, **{name: to_cells(v) for name, v in values.items()}})


def ids_of(stream: TrainingStream, count: int) -> list[list[int]]:
    return [batch["galaxy_id"].tolist() for batch in islice(iter(stream), count)]


def test_rows_keep_together(cache: CachedGalaxies) -> None:
    batch = next(iter(TrainingStream(cache, 10)))
    assert batch["cached"].shape == (10, *SHAPE)
    assert batch["votes"].shape == (10, N_ANSWERS)
    np.testing.assert_array_equal(batch["is_rare"], batch["galaxy_id"] % ROWS_PER_FILE == 0)
    np.testing.assert_array_equal(batch["cached"][:, 0, 0, 0], batch["galaxy_id"])
    np.testing.assert_allclose(batch["votes"][:, 5], batch["galaxy_id"] / ROWS, rtol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 7, 12, 50, ROWS])
def test_an_epoch_shows_no_galaxy_twice(cache: CachedGalaxies, batch_size: int) -> None:
    steps = ROWS // batch_size
    epochs = ids_of(TrainingStream(cache, batch_size), 2 * steps)
    for epoch in (epochs[:steps], epochs[steps:]):
        shown = [i for batch in epoch for i in batch]
        assert len(shown) == len(set(shown)) == steps * batch_size
    assert epochs[:steps] != epochs[steps:]


@pytest.mark.parametrize("first_step", [0, 1, 8, 15, 16, 17, 40])
@pytest.mark.parametrize("weigh", [None, lambda rows: 1.0 + rows["is_rare"]])
def test_any_step_can_be_gone_to(cache: CachedGalaxies, first_step: int, weigh: Any) -> None:
    whole = ids_of(TrainingStream(cache, 7, seed=3, weigh=weigh), 50)
    later = TrainingStream(cache, 7, seed=3, first_step=first_step, weigh=weigh)
    assert ids_of(later, 10) == whole[first_step:][:10]


def test_the_rare_are_drawn_as_often_as_they_weigh(
    cache: CachedGalaxies, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "BLOCKS_TOGETHER", 100)
    weighed = TrainingStream(cache, 23, weigh=lambda rows: np.where(rows["is_rare"], 22.0, 1.0))
    drawn = np.concatenate([batch["is_rare"] for batch in islice(iter(weighed), 200)])
    assert drawn.mean() == pytest.approx(0.5, abs=0.03)


def test_galaxies_in_order(cache: CachedGalaxies) -> None:
    batches = list(cache.in_order(10))
    assert max(len(batch["galaxy_id"]) for batch in batches) == 10
    assert [i for batch in batches for i in batch["galaxy_id"]] == list(range(ROWS))


def test_columns_can_be_left_unread(cache: CachedGalaxies) -> None:
    assert set(cache.read(cache.blocks, ["is_rare"])) == {"galaxy_id", "is_rare"}


def test_streams_are_mixed_step_by_step(cache: CachedGalaxies) -> None:
    real, painted = TrainingStream(cache, 7, seed=1), TrainingStream(cache, 3, seed=2)
    mixed = list(islice(iter(MixedStream((real, painted))), 60))
    assert [batch["galaxy_id"][:7].tolist() for batch in mixed] == ids_of(real, 60)
    assert [batch["galaxy_id"][7:].tolist() for batch in mixed] == ids_of(painted, 60)


def test_what_comes_before_is_not_read(cache: CachedGalaxies, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    original = CachedGalaxies.read
    monkeypatch.setattr(
        CachedGalaxies, "read", lambda self, blocks: read.append(len(blocks)) or original(self, blocks)
    )
    next(iter(TrainingStream(cache, 7, first_step=15)))
    assert sum(read) <= 2 * stream.BLOCKS_TOGETHER


@pytest.mark.parametrize("workers", [1, 2, 3, 7])
def test_workers_share_every_batch(cache: CachedGalaxies, workers: int) -> None:
    whole = ids_of(TrainingStream(cache, 7, seed=1), 20)
    shares = [ids_of(TrainingStream(cache, 7, 1, 0, rank, workers), 20) for rank in range(workers)]
    for step, batch in enumerate(whole):
        assert sorted(i for share in shares for i in share[step]) == sorted(batch)


def test_seeds_give_other_orders(cache: CachedGalaxies) -> None:
    assert ids_of(TrainingStream(cache, 7, seed=1), 5) != ids_of(TrainingStream(cache, 7, seed=2), 5)


def test_too_few_galaxies(cache: CachedGalaxies) -> None:
    with pytest.raises(EmptyInputError, match=r"115 galaxies .* batch of 116.*--batch-size"):
        TrainingStream(cache, ROWS + 1)


def test_a_file_that_is_not_what_was_published(cache: CachedGalaxies) -> None:
    location: Location = cache.location
    write_parquet(location, "shards/0.parquet", table(np.arange(20)), ROWS_PER_BLOCK)
    reopened = CachedGalaxies.open(location)
    with pytest.raises(InputError, match=r"shards/0.parquet .*Delete"):
        reopened.read(list(reopened.blocks))
