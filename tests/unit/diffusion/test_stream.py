"""The order of training batches: from the seed and the step alone, whoever reads them."""

from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from galray.core.errors import EmptyInputError, InputError
from galray.core.manifest import publish, write_parquet
from galray.core.schema import N_ANSWERS
from galray.core.storage import Location, open_location
from galray.diffusion import stream
from galray.diffusion.stream import CACHE_KIND, CachedGalaxies, TrainingStream

ROWS_PER_BLOCK, FILES, ROWS_PER_FILE = 4, 5, 23
ROWS = FILES * ROWS_PER_FILE
SHAPE = (2, 2, 3)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CachedGalaxies:
    """115 galaxies in five files, in blocks of four and last ones of three; three blocks mix at a time."""
    monkeypatch.setattr(stream, "BLOCKS_TOGETHER", 3)
    location = open_location(str(tmp_path / "cache"))
    with publish(location, CACHE_KIND) as publication:
        for k in range(FILES):
            ids = np.arange(k * ROWS_PER_FILE, (k + 1) * ROWS_PER_FILE)
            publication.add(write_parquet(location, f"shards/{k}.parquet", table(ids), ROWS_PER_BLOCK))
        publication.lineage = {"shape": list(SHAPE), "dtype": "uint8", "rows_per_block": ROWS_PER_BLOCK}
    return CachedGalaxies.open(location)


def table(ids: np.ndarray) -> pa.Table:
    votes = np.repeat(ids[:, None] / ROWS, N_ANSWERS, axis=1).astype(np.float32)
    cells = [np.full(SHAPE, i, np.uint8).tobytes() for i in ids]
    return pa.table(
        {
            "galaxy_id": ids,
            "votes": pa.FixedSizeListArray.from_arrays(pa.array(votes.ravel()), N_ANSWERS),
            "cached": pa.array(cells, pa.binary(int(np.prod(SHAPE)))),
        }
    )


def ids_of(stream: TrainingStream, count: int) -> list[list[int]]:
    return [batch["galaxy_id"].tolist() for batch in islice(iter(stream), count)]


def test_rows_keep_together(cache: CachedGalaxies) -> None:
    batch = next(iter(TrainingStream(cache, 10)))
    assert batch["cached"].shape == (10, *SHAPE)
    assert batch["votes"].shape == (10, N_ANSWERS)
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
def test_any_step_can_be_gone_to(cache: CachedGalaxies, first_step: int) -> None:
    whole = ids_of(TrainingStream(cache, 7, seed=3), 50)
    assert ids_of(TrainingStream(cache, 7, seed=3, first_step=first_step), 10) == whole[first_step:][:10]


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
