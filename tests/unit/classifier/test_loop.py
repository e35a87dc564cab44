"""One worker's steps: they follow from seed and step, and go on from a checkpoint as if nothing had been."""

import shutil
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray.train
import torch
from ray.train import Checkpoint

from galray.classifier import loop, network
from galray.classifier.examples import Examples
from galray.classifier.loop import _predict_batch, maps_of, mixed_stream, predict_splits, start, train_epoch
from galray.classifier.losses import balance
from galray.classifier.network import predict
from galray.classifier.state import TrainingState
from galray.classifier.train import PRESETS, ClassifyConfig
from galray.classifier.votes import expected_fractions
from galray.core.cells import cache_table
from galray.core.manifest import publish, write_parquet
from galray.core.storage import open_location
from galray.data.stream import CACHE_KIND, CachedGalaxies, Column, loader

GALAXIES, SIZE_PX = 27, 32
CONFIG: ClassifyConfig = replace(
    PRESETS["debug"].config,
    synthetic="painted",
    augmentation_ratio=0.5,
    batch_size=8,
    epochs=4,
    precision="float32",
)
CPU = torch.device("cpu")


def cache(folder: Path, first_id: int, more: dict[str, np.ndarray] | None = None) -> CachedGalaxies:
    """Publish noise as cached galaxies, with more columns."""
    random = np.random.default_rng(abs(first_id))
    batch = {
        "galaxy_id": np.arange(first_id, first_id + GALAXIES),
        "image": random.integers(0, 256, (GALAXIES, SIZE_PX, SIZE_PX, 3), dtype=np.uint8),
        "morphology": random.integers(0, 5, GALAXIES),
        "targets": random.integers(0, 2, (GALAXIES, 1)).astype(np.int8),
        **(more or {}),
    }
    location = open_location(str(folder))
    with publish(location, CACHE_KIND) as publication:
        table = cache_table(batch).drop_columns(["reason"])
        publication.add(write_parquet(location, "shards/part-0.parquet", table, 10))
        columns = {
            name: asdict(Column(values.shape[1:], str(values.dtype))) for name, values in batch.items()
        }
        columns.pop("galaxy_id")
        publication.lineage = {"columns": columns, "rows_per_block": 10}
    return CachedGalaxies.open(location)


@pytest.fixture
def examples(tmp_path: Path) -> Examples:
    real, painted = cache(tmp_path / "real", 0), cache(tmp_path / "painted", -100)
    rows = real.read(real.blocks)
    weights = balance(rows, 5, "pos-weight")
    network = replace(
        CONFIG.network(), class_shares=(0.6, 0.1, 0.1, 0.1, 0.1), prevalence=weights.assumed_prevalence
    )
    return Examples(network, weights, None, real, painted, {"validation": real, "test": painted})


def train_epochs(examples: Examples, state: TrainingState, count: int) -> list[float]:
    stream = mixed_stream(CONFIG, examples, state.step)
    batches, per_epoch = iter(loader(stream, 0)), stream.streams[0].steps_per_epoch
    return [
        train_epoch(CONFIG, examples, state, state.model, islice(batches, per_epoch))["loss"]
        for _ in range(count)
    ]


def test_a_restored_run_takes_the_same_steps(examples: Examples, tmp_path: Path) -> None:
    calm = start(CONFIG, examples, CPU)
    losses = train_epochs(examples, calm, 4)
    first = start(CONFIG, examples, CPU)
    assert train_epochs(examples, first, 2) == losses[:2]
    first.save(tmp_path)
    resumed = start(replace(CONFIG, seed=7), examples, CPU)
    resumed.restore(tmp_path)
    assert resumed.step == 6
    assert train_epochs(examples, resumed, 2) == losses[2:]
    for name in ("model", "average"):
        pairs = zip(
            getattr(calm, name).state_dict().values(),
            getattr(resumed, name).state_dict().values(),
            strict=True,
        )
        assert all(torch.equal(one, two) for one, two in pairs)


def test_a_worker_reports_judges_and_goes_on(
    examples: Examples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What Ray Train calls, with Ray's own functions replaced; the last checkpoint has both splits' rows."""
    reported: list[dict[str, float]] = []

    def report(metrics: dict[str, float], checkpoint: Checkpoint | None = None) -> None:
        reported.append(dict(metrics))
        if checkpoint:
            shutil.copytree(checkpoint.path, tmp_path / f"after-{metrics['step']}")

    monkeypatch.setattr(ray.train, "report", report)
    monkeypatch.setattr(ray.train, "get_checkpoint", lambda: None)
    monkeypatch.setattr(loop, "get_device", lambda: CPU)
    monkeypatch.setattr(loop, "prepare_model", lambda model, **_: model)
    config = replace(CONFIG, validate_every=2)
    loop.fit_loop(config, examples)
    assert [metrics["step"] for metrics in reported] == [2, 4]
    followed = {"average_precision", "completeness", "purity", "f1", "accuracy", "macro_f1", "loss"}
    assert all(followed < set(metrics) for metrics in reported)
    rows = pq.read_table(tmp_path / "after-4" / loop.PREDICTIONS_FILE)
    assert len(rows) == 2 * GALAXIES
    assert network.load(tmp_path / "after-4" / loop.MODEL).config == examples.network

    shutil.move(tmp_path / "after-4", tmp_path / "first")
    monkeypatch.setattr(
        ray.train, "get_checkpoint", lambda: Checkpoint.from_directory(str(tmp_path / "after-2"))
    )
    loop.fit_loop(config, examples)
    assert [metrics["step"] for metrics in reported] == [2, 4, 2, 4]
    assert reported[2] == reported[0]  # those who follow may not have heard of it
    assert reported[1]["loss"] == reported[3]["loss"]
    assert pq.read_table(tmp_path / "after-4" / loop.PREDICTIONS_FILE) == rows

    shutil.rmtree(tmp_path / "after-4")
    loop.fit_loop(replace(config, turns=False), examples)
    plain = pq.read_table(tmp_path / "after-4" / loop.PREDICTIONS_FILE)
    assert {*rows.column_names} - {*plain.column_names} == {"score_turned", "morphology_turned"}
    assert plain == rows.select(plain.column_names)


def test_every_batch_has_its_share_of_synthetic_galaxies(examples: Examples) -> None:
    for batch in islice(iter(mixed_stream(CONFIG, examples, 0)), 7):
        assert (batch["galaxy_id"] >= 0).tolist() == [True] * 8 + [False] * 4


def test_workers_share_the_draws_of_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = maps_of(CONFIG, step=5)
    assert not torch.equal(whole, maps_of(CONFIG, step=6))
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    assert torch.equal(maps_of(CONFIG, step=5), whole[[1, 3, 5, 7, 9, 11]])


def test_the_average_follows_slower_than_the_weights(examples: Examples) -> None:
    state = start(CONFIG, examples, CPU)
    before = state.model.morphology_head.weight.detach().clone()
    train_epochs(examples, state, 1)
    moved = [(m.morphology_head.weight - before).norm().item() for m in (state.average, state.model)]
    assert 0 < moved[0] < moved[1]
    variances = [dict(m.named_buffers()) for m in (state.average, state.model)]
    name = next(name for name in variances[0] if name.endswith("running_var"))
    assert not torch.equal(variances[0][name], torch.ones_like(variances[0][name]))
    assert not torch.equal(variances[0][name], variances[1][name])


def test_what_is_published_assumes_the_stated_shares(examples: Examples) -> None:
    state = start(CONFIG, examples, CPU)
    published = state.published(examples.balance)
    images = examples.real.read(examples.real.blocks)["image"]
    raw, shifted = predict(state.average, images).morphology, predict(published, images).morphology
    odds = np.array(published.config.class_shares) / np.array(examples.balance.assumed.classes)
    joint = raw * odds
    np.testing.assert_allclose(shifted, joint / joint.sum(axis=1, keepdims=True), rtol=1e-4)


def test_every_judged_galaxy_is_predicted_once(examples: Examples) -> None:
    model = start(CONFIG, examples, CPU).average
    rows = predict_splits(model, False, examples.judged)
    assert rows["split"].to_pylist() == ["validation"] * GALAXIES + ["test"] * GALAXIES
    assert rows["galaxy_id"].to_pylist() == [*range(GALAXIES), *range(-100, GALAXIES - 100)]
    probability = np.array(rows["morphology_probability"].to_pylist())
    np.testing.assert_array_equal(probability.argmax(axis=1), rows["morphology_predicted"].to_numpy())


def test_turned_scores_do_not_mind_how_a_galaxy_lies(examples: Examples) -> None:
    model = start(CONFIG, examples, CPU).average
    first = next(iter(examples.judged["test"].in_order(GALAXIES)))
    scores = [
        _predict_batch(model, False, "test", {**first, "image": image}, True)
        for image in (first["image"], np.ascontiguousarray(np.rot90(first["image"], axes=(1, 2))))
    ]
    for name in ("score", "morphology"):
        as_they_are, turned = (np.array(rows[f"{name}_turned"].to_pylist()) for rows in scores)
        np.testing.assert_allclose(as_they_are, turned, atol=1e-5)
    assert not np.allclose(*(rows["score"].to_numpy() for rows in scores), atol=1e-5)
    plain = predict_splits(model, False, examples.judged)
    assert not {"score_turned", "morphology_turned"} & set(plain.column_names)


def test_votes_are_learnt_and_predicted(examples: Examples, tmp_path: Path) -> None:
    config = replace(CONFIG, votes=True, synthetic="")
    torch.manual_seed(0)
    votes = expected_fractions(3 * torch.randn(1, 37)).expand(GALAXIES, -1).numpy()
    known = {"votes": votes, "volunteers": np.full((GALAXIES, 11), 20, np.float32)}
    real = cache(tmp_path / "voted", 50, known)
    voted = replace(
        examples,
        network=replace(examples.network, votes=True),
        real=real,
        synthetic=None,
        judged={"test": real},
    )
    state = start(config, voted, CPU)
    first = vote_error(state, voted)
    for _ in range(8):
        batches = iter(loader(mixed_stream(config, voted, state.step), 0))
        train_epoch(config, voted, state, state.model, islice(batches, 3))
    assert vote_error(state, voted) < first


def vote_error(state: TrainingState, examples: Examples) -> float:
    rows = predict_splits(state.average, False, examples.judged)
    truth, said = (np.array(rows[name].to_pylist()) for name in ("votes", "votes_predicted"))
    return float(np.abs(truth - said).mean())


def test_learning_rate_warms_up_and_falls() -> None:
    rates = [CONFIG.learning_rate_at(step, 1000) for step in range(1001)]
    assert rates[0] == pytest.approx(CONFIG.learning_rate / 50)
    assert max(rates) == pytest.approx(CONFIG.learning_rate, rel=0.01)
    assert 40 <= rates.index(max(rates)) <= 50
    assert rates[1000] == pytest.approx(CONFIG.learning_rate / 100)
