"""The classifier's training loop: what one worker of a Ray Train run does.

All that chance decides of a step follows from the seed and the step's number, and is drawn for the whole
batch, of which a worker takes its share. So a run that was interrupted takes the steps that it would have
taken.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray.train
import torch
from ray.train.torch import get_device, prepare_model
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from galray.classifier import losses, network
from galray.classifier.augment import resample
from galray.classifier.examples import Examples
from galray.classifier.judging import PREDICTIONS_FILE, validation_metrics
from galray.classifier.network import Classifier
from galray.classifier.state import TrainingState
from galray.classifier.votes import vote_loss
from galray.core.cells import list_cells
from galray.core.cluster import Progress, checkpoint_of, latest_checkpoint, say
from galray.core.precision import in_bfloat16
from galray.core.workers import is_first, of_all_workers, rank_of
from galray.data.lineage import JUDGED_SPLITS
from galray.data.stream import Batch, CachedGalaxies, MixedStream, TrainingStream, loader

if TYPE_CHECKING:
    from galray.classifier.train import ClassifyConfig

MODEL = "model"
_JUDGED_AT_ONCE = 256


def fit_loop(config: ClassifyConfig, examples: Examples) -> None:
    """Train on one worker of a Ray Train run."""
    torch.set_num_threads(config.scaling.threads)
    state = start(config, examples, get_device())
    latest = latest_checkpoint()
    if latest is not None:
        with latest.as_directory() as folder:
            state.restore(Path(folder))
        if is_first():
            say(f"classify: goes on from the checkpoint after step {state.step}")
    model = prepare_model(state.model, move_to_device=False)
    _run_epochs(config, examples, state, model)


def start(config: ClassifyConfig, examples: Examples, device: torch.device) -> TrainingState:
    """Return the state before the first step."""
    torch.manual_seed(config.seed)
    model = Classifier(examples.network)
    backbone = config.starting_backbone()
    if backbone is not None:
        model.backbone.load_state_dict(backbone.state_dict())
    return TrainingState.new(config, model.to(device))


def _run_epochs(config: ClassifyConfig, examples: Examples, state: TrainingState, model: nn.Module) -> None:
    stream = mixed_stream(config, examples, state.step)
    batches = iter(loader(stream, config.loader_processes, pin_memory=get_device().type == "cuda"))
    per_epoch = stream.streams[0].steps_per_epoch
    progress = Progress("classify", config.epochs, "epochs") if is_first() else None
    if progress:
        progress.start_at(state.step // per_epoch)
    for epoch in range(state.step // per_epoch + 1, config.epochs + 1):
        report = train_epoch(config, examples, state, model, islice(batches, per_epoch))
        if not math.isfinite(report["loss"]):
            return  # not raised: it would be tried again, as if a machine had failed
        if epoch == config.epochs or epoch % config.validate_every == 0:
            report = {"step": epoch, **report}
            _judge_and_report(config, examples, state, report, last=epoch == config.epochs)
        if progress:
            progress.advance(1, _headline(report))


def mixed_stream(config: ClassifyConfig, examples: Examples, first_step: int) -> MixedStream:
    """Return this worker's share of every batch from a step on: real galaxies, then synthetic ones."""
    place = (config.seed, first_step, *rank_of())
    streams = [TrainingStream(examples.real, config.batch_size, *place, weigh=examples.draw)]
    if examples.synthetic:
        streams.append(TrainingStream(examples.synthetic, config.synthetic_per_step, *place))
    return MixedStream(tuple(streams))


def train_epoch(
    config: ClassifyConfig,
    examples: Examples,
    state: TrainingState,
    model: nn.Module,
    batches: Iterator[dict[str, Tensor]],
) -> dict[str, float]:
    """Take an epoch's steps; returns the mean loss over all workers, and images per second."""
    started_s = time.monotonic()
    first_step = state.step
    model.train()
    steps = config.epochs * (len(examples.real) // config.batch_size)
    taken = [train_step(config, examples, state, model, batch, steps) for batch in batches]
    loss = float(of_all_workers(torch.stack(taken)).mean())
    images = (state.step - first_step) * (config.batch_size + config.synthetic_per_step)
    return {"loss": loss, "images_per_s": images / (time.monotonic() - started_s)}


def train_step(
    config: ClassifyConfig,
    examples: Examples,
    state: TrainingState,
    model: nn.Module,
    batch: dict[str, Tensor],
    steps: int,
) -> Tensor:
    """Take one of `steps` steps of AdamW; returns this worker's loss."""
    device = next(model.parameters()).device
    torch.manual_seed(seed_of(config, state.step))  # of dropout, where a backbone has any
    for group in state.optimizer.param_groups:
        group["lr"] = config.learning_rate_at(state.step, steps)
    images = batch["image"].to(device)
    if config.augmentation.varies:
        images = resample(images, maps_of(config, state.step))
    targets = batch.get("targets", torch.empty(len(images), 0, dtype=torch.int8))  # no target, none cached
    with torch.autocast(device.type, torch.bfloat16, enabled=in_bfloat16(config.precision, device)):
        outputs = model(images)
    loss = losses.loss(
        outputs, batch["morphology"].to(device), targets.to(device), examples.balance, config.focal_gamma
    )
    if outputs.votes is not None:
        loss += vote_loss(outputs.votes, batch["votes"].to(device), batch["volunteers"].to(device))
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    clip_grad_norm_(model.parameters(), config.gradient_clip)
    state.optimizer.step()
    state.update_average(config.ema_decay)
    state.step += 1
    return loss.detach()


def seed_of(config: ClassifyConfig, step: int) -> int:
    """Return the seed of all that chance decides of a step."""
    return config.seed * 1_000_003 + step


def maps_of(config: ClassifyConfig, step: int) -> Tensor:
    """Draw a step's augmentation for the whole batch; returns this worker's rows, as its batch has them."""
    generator = torch.Generator().manual_seed(seed_of(config, step))
    maps = config.augmentation.draw(config.batch_size + config.synthetic_per_step, generator)
    rank, workers = rank_of()
    real, synthetic = maps[: config.batch_size], maps[config.batch_size :]
    return torch.cat([real[rank::workers], synthetic[rank::workers]])


def _judge_and_report(
    config: ClassifyConfig, examples: Examples, state: TrainingState, report: dict[str, float], *, last: bool
) -> None:
    """Judge the averaged weights on the first worker; the others wait for it."""
    if not is_first():
        ray.train.report(report)
        return
    splits = JUDGED_SPLITS if last else ("validation",)
    published = state.published(examples.balance)
    bfloat16 = in_bfloat16(config.precision, get_device())
    judged = {split: examples.judged[split] for split in splits}
    predictions = predict_splits(published, bfloat16, judged, turns=last and config.turns)
    report |= validation_metrics(predictions, published.config)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        network.save(published, folder / MODEL)
        state.save(folder)
        pq.write_table(predictions, folder / PREDICTIONS_FILE)
        ray.train.report(report, checkpoint=checkpoint_of(folder, report))


def predict_splits(
    model: Classifier, bfloat16: bool, judged: Mapping[str, CachedGalaxies], *, turns: bool = False
) -> pa.Table:
    """Score the real galaxies that judge: one row each, with what is true of them.

    With `turns`, ``morphology_turned`` and ``score_turned`` are the mean probabilities of a galaxy's eight
    symmetries, as a scan may have them.
    """
    return pa.concat_tables(
        _predict_batch(model, bfloat16, split, batch, turns)
        for split, galaxies in judged.items()
        for batch in galaxies.in_order(_JUDGED_AT_ONCE)
    )


def _predict_batch(model: Classifier, bfloat16: bool, split: str, batch: Batch, turns: bool) -> pa.Table:
    said = network.predict(model, batch["image"], bfloat16=bfloat16)
    columns = {
        "galaxy_id": batch["galaxy_id"],
        "split": [split] * len(batch["galaxy_id"]),
        "morphology": batch["morphology"],
        "morphology_predicted": said.morphology.argmax(axis=1),
        "morphology_probability": list_cells(said.morphology),
    }
    if said.votes is not None:
        columns |= {"votes": list_cells(batch["votes"]), "votes_predicted": list_cells(said.votes)}
        columns["volunteers"] = list_cells(batch["volunteers"])
    if model.config.targets:
        columns |= {"truth": batch["targets"][:, 0], "score": said.targets[:, 0]}
    if turns:
        _, *others = network.symmetries(batch["image"])
        seen = [said, *(network.predict(model, images, bfloat16=bfloat16) for images in others)]
        columns["morphology_turned"] = list_cells(np.mean([each.morphology for each in seen], axis=0))
        if model.config.targets:
            columns["score_turned"] = np.mean([each.targets[:, 0] for each in seen], axis=0)
    return pa.table(columns)


def _headline(report: dict[str, float]) -> str:
    name = next((name for name in ("average_precision", "accuracy") if name in report), None)
    judged = f", {name.replace('_', ' ')} {report[name]:.3f}" if name else ""
    return f"loss {report['loss']:.3f}{judged}"
