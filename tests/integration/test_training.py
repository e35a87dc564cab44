"""Training on Ray Train, killed and resumed: the steps taken are those of a run that nobody disturbed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest
import safetensors.numpy
from mlflow import MlflowClient
from ray.train import UserCallback

from galray.classifier.train import PRESETS as CLASSIFIERS
from galray.classifier.train import fit
from galray.core.claims import holder
from galray.core.cluster import Scaling, connect
from galray.core.errors import TrainingError
from galray.core.job import EXIT_INTERRUPTED
from galray.core.manifest import publish, write_parquet
from galray.core.schema import GALAXY_SCHEMA, N_ANSWERS
from galray.core.storage import Location, open_location
from galray.data.images import encode_jpeg
from galray.diffusion.train import CHECKPOINTS, PRESETS, train
from tests.integration.processes import JobProcess, titled

GALAXIES, SIZE_PX = 90, 32
KILLS = int(os.environ.get("GALRAY_TEST_KILLS", "2"))  # in turn of the worker, and of the machine
STEPS = {
    "steps": 30 * KILLS,
    "batch_size": 15,
    "log_every": 5,
    "checkpoint_every": 10,
    "precision": "float32",
}
pytestmark = [  # of Ray's own, which runs in this process too
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


def publish_galaxies(location: Location, judged: int = 0) -> None:
    """Publish noise as galaxies of the training split, and so many of each of the other splits."""
    random = np.random.default_rng(0)
    splits = ["train"] * GALAXIES + ["validation"] * judged + ["test"] * judged
    images = random.integers(0, 256, (len(splits), SIZE_PX, SIZE_PX, 3), dtype=np.uint8)
    rows = [
        {
            "galaxy_id": i,
            "survey": "test",
            "votes": random.random(N_ANSWERS).tolist(),
            "classifications": 40,
            "image": encode_jpeg(image),
            "height": SIZE_PX,
            "width": SIZE_PX,
            "split": splits[i],
            "source": "mock",
            "provenance": "{}",
        }
        for i, image in enumerate(images)
    ]
    with publish(location, "galaxies") as publication:
        table = pa.Table.from_pylist(rows, schema=GALAXY_SCHEMA)
        publication.add(write_parquet(location, "shards/part-0.parquet", table))


def loss_curve(root: Path) -> dict[int, set[float]]:
    """Return every loss that was tracked at each step, over all runs of the pipeline."""
    client = MlflowClient(f"sqlite:///{root}/mlflow.db")
    experiment = client.get_experiment_by_name("galray")
    assert experiment is not None
    curve: dict[int, set[float]] = {}
    for run in client.search_runs([experiment.experiment_id]):
        for point in client.get_metric_history(run.info.run_id, "loss"):
            curve.setdefault(point.step, set()).add(round(point.value, 6))
    return curve


def weights(root: Path) -> dict[str, np.ndarray]:
    """Return the published weights of the U-Net."""
    return safetensors.numpy.load_file(root / "denoiser/unet/diffusion_pytorch_model.safetensors")


def kill_workers(above: psutil.Process | None) -> None:
    """Kill the process below another that trains, and nothing else."""
    assert above is not None
    workers = titled(above, "RayTrainWorker")
    assert workers
    workers[0].process.kill()


class Training(JobProcess):
    """A training job in a process of its own, to be killed."""

    def __init__(self, root: Path, log: Path) -> None:
        options = [
            word for name, value in STEPS.items() for word in (f"--{name.replace('_', '-')}", str(value))
        ]
        super().__init__("train", "debug", "--root", str(root), *options, "--resume", log=log)
        self._root = root

    def wait_for_checkpoint_after(self, time_s: float) -> None:
        """Wait until a checkpoint has been kept later than this, in seconds since 1970."""
        self.wait_for(lambda: kept_s(self._root) > time_s)

    def kill_worker(self) -> None:
        """Kill the process that trains, and nothing else."""
        kill_workers(psutil.Process(self.process.pid))


def kept_s(root: Path) -> float:
    """Return when the last checkpoint was kept, in seconds since 1970; 0 before the first."""
    times_s = [0.0]
    for state in root.glob(f"denoiser/{CHECKPOINTS}/checkpoint_*/state.pt"):
        with suppress(FileNotFoundError):  # another has just taken its place
            times_s.append(state.stat().st_mtime)
    return max(times_s)


def run_of(root: Path) -> Path:
    """Return a pipeline's root with galaxies to train on."""
    publish_galaxies(open_location(str(root / "galaxies")))
    return root


@pytest.fixture(scope="module")
def _local_ray() -> Iterator[None]:
    with connect():
        yield


def trained(root: Path, **options: Any) -> Path:
    """Train in this process's Ray session."""
    train(replace(PRESETS["debug"].config, root=str(root), **STEPS, **options))
    return root


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory, _local_ray: None) -> Path:
    """A training that nobody disturbed, by one worker."""
    return trained(run_of(tmp_path_factory.mktemp("calm")))


def assert_same_curve(found: dict[int, set[float]], expected: dict[int, set[float]], rtol: float) -> None:
    """A step that was taken again gave the loss that it had given before, and that of the calm run."""
    assert sorted(found) == sorted(expected) == list(range(5, STEPS["steps"] + 1, 5))
    for step, values in found.items():
        np.testing.assert_allclose(sorted(values), [*expected[step]] * len(values), rtol=rtol)


@pytest.mark.timeout(500 * KILLS)
def test_killed_and_resumed_trains_the_same(calm: Path, tmp_path: Path) -> None:
    """Lost workers and machines, at random steps: the same losses at the same steps, and the same weights."""
    root, log = run_of(tmp_path / "disturbed"), tmp_path / "log.txt"
    random, training, since_s = np.random.default_rng(), Training(root, log), 0.0
    for kill in range(KILLS):
        training.wait_for_checkpoint_after(since_s)
        time.sleep(random.uniform(0, 0.2))
        since_s = time.time()
        if kill % 2 == 0:
            training.kill_worker()
        else:
            training.kill_all()
            training = Training(root, log)
    assert training.end() == 0, log.read_text()[-3000:]
    assert_same_curve(loss_curve(root), loss_curve(calm), rtol=1e-4)
    for name, values in weights(calm).items():
        np.testing.assert_allclose(weights(root)[name], values, rtol=1e-3, atol=1e-5)


@pytest.mark.timeout(1000)
@pytest.mark.parametrize("shard", [False, True], ids=["replicated", "sharded"])
def test_two_workers_take_the_same_steps(calm: Path, tmp_path: Path, shard: bool) -> None:
    """Batches, draws and gradients do not depend on how the batch is shared out, unevenly too."""
    root = trained(run_of(tmp_path / "two"), scaling=Scaling(workers=2, shard=shard))
    assert_same_curve(loss_curve(root), loss_curve(calm), rtol=2e-3)
    assert list(root.glob("mlflow-artifacts/*/artifacts/samples/step-*.png"))


def test_ctrl_c_is_told_apart_and_what_was_learnt_stays(tmp_path: Path) -> None:
    """Not as Ray Train has it, which ends as if the job had failed."""
    root, log = run_of(tmp_path / "run"), tmp_path / "log.txt"
    training = Training(root, log)
    training.wait_for_checkpoint_after(0)
    training.process.send_signal(signal.SIGINT)
    assert training.end() == EXIT_INTERRUPTED
    assert "with --resume goes on" in log.read_text()
    assert kept_s(root)
    claim = holder(open_location(str(root / "denoiser")))
    assert claim is not None
    assert claim.stopped_utc


@pytest.mark.usefixtures("_local_ray")
def test_a_loss_that_is_no_number_stops_at_once(tmp_path: Path) -> None:
    """The message names step, galaxies and checkpoint, and no machine is tried again for it."""
    with pytest.raises(TrainingError, match=r"Step \d+: .*the whole batch: \d+, .*--learning-rate"):
        trained(run_of(tmp_path / "hot"), learning_rate=1e30, gradient_clip=1e30, warmup_steps=0)


class KillAfter(UserCallback):
    """Keep each epoch's loss in a file, and kill the worker once, after an epoch; 0 kills none."""

    def __init__(self, log: Path, epoch: int) -> None:
        self._log, self._epoch = log, epoch

    def after_report(self, run_context, metrics, checkpoint) -> None:  # noqa: ARG002 (Ray's signature)
        epoch, loss = metrics[0]["step"], metrics[0]["loss"]
        before = self._log.read_text() if self._log.exists() else ""
        self._log.write_text(f"{before}{epoch} {loss}\n")
        if epoch == self._epoch and f"\n{epoch} " not in f"\n{before}":
            kill_workers(psutil.Process().parent())  # Ray's, which started this process too


def classified(root: Path, killed_after: int) -> tuple[dict[int, list[float]], dict[str, np.ndarray]]:
    """Train a classifier; returns the losses that each epoch was reported with, and the weights."""
    publish_galaxies(open_location(str(root / "galaxies")), judged=20)
    config = replace(
        CLASSIFIERS["debug"].config, root=str(root), target="", epochs=6, batch_size=15, precision="float32"
    )
    log = root / "losses.txt"
    result = fit(config, open_location(str(root / "classifier")), [KillAfter(log, killed_after)])
    losses: dict[int, list[float]] = {}
    for line in log.read_text().splitlines():
        epoch, loss = line.split()
        losses.setdefault(int(epoch), []).append(float(loss))
    assert result.checkpoint is not None
    with result.checkpoint.as_directory() as folder:
        return losses, safetensors.numpy.load_file(Path(folder, "model/model.safetensors"))


@pytest.mark.usefixtures("_local_ray")
def test_a_classifier_whose_worker_is_killed_learns_the_same(tmp_path: Path) -> None:
    """The epoch that was lost is taken again, with the same losses, and ends with the same weights.

    The one before it is told of again, for it may have been killed before anybody heard of it.
    """
    losses, weights = classified(tmp_path / "calm", killed_after=0)
    again, same = classified(tmp_path / "disturbed", killed_after=3)
    assert sorted(again) == sorted(losses) == [1, 2, 3, 4, 5, 6]
    assert again[3] == [again[3][0]] * 2
    for epoch, values in again.items():
        np.testing.assert_allclose(values, losses[epoch] * len(values), rtol=1e-4)
    for name, values in weights.items():
        np.testing.assert_allclose(same[name], values, rtol=1e-3, atol=1e-5)
