"""What an evaluation rests on, gathered on Ray Data: examined galaxies, their shapes and neighbours."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, Literal

import numpy as np
import ray
from ray.data import ActorPoolStrategy, Dataset
from ray.data.expressions import col

from galray.core.cluster import Scaling, say
from galray.core.config import JobConfig, require
from galray.core.errors import EmptyInputError, LineageError
from galray.core.manifest import Manifest, ancestry
from galray.core.precision import Precision
from galray.core.shards import read_shards
from galray.core.storage import Location
from galray.data.batches import read_galaxies
from galray.data.images import decode_rgb
from galray.data.lineage import refuse_seen
from galray.diffusion.fidelity import (
    Draw,
    Nearest,
    draw_classes,
    matched_counts,
    matched_draws,
)
from galray.evaluation.morphometry import MORPHOMETRY
from galray.evaluation.sample import Judge, Light, Sample
from galray.evaluation.workers import Examine, MeasureShapes, SearchNearest

_COLUMNS = ("galaxy_id", "votes", "classifications", "label", "source", "image")
_SHAPES_PER_TASK = 16  # each takes a quarter of a second
_MOST_PAIRS = 8 << 20  # distances that a task holds at once, some of them eight times


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(JobConfig):
    """Which synthetic galaxies are judged, by what, and how thoroughly."""

    synthetic: str = "{root}/synthetic"
    galaxies: str = "{root}/galaxies"
    """Real galaxies; those of --split judge."""
    split: Literal["validation", "test"] = "validation"
    classifier: str = "{root}/reference"
    """Trained on real galaxies alone, as the preset classes of jobs/classify.py does."""
    output: str = "{root}/evaluation"
    draws: int = 20
    """Random draws over which distances between sets are taken."""
    per_draw: int = 2000
    """Most galaxies of each kind in a draw."""
    neighbours: int = 3
    """k of precision and recall."""
    shapes: int = 300
    """Most synthetic, and real, galaxies whose shape is measured; four a second on a core."""
    copies: int = 5000
    """Most synthetic, and held-out, galaxies whose nearest training galaxies are searched."""
    copy_quantile: float = 0.01
    """Share of held-out galaxies that count as near-copies of training galaxies."""
    shown: int = 12
    """Galaxies in a row of the figures."""
    precision: Precision = "auto"
    """bfloat16 where the hardware computes in it, which is faster; float32 elsewhere."""
    batch_size: int = 256
    seed: int = 0
    scaling: Scaling = field(default_factory=Scaling)

    def __post_init__(self) -> None:
        for name in ("draws", "per_draw", "neighbours", "shapes", "copies", "shown", "batch_size"):
            require(getattr(self, name) >= 1, f"--{name.replace('_', '-')} must be at least 1.")
        require(0 < self.copy_quantile < 1, "--copy-quantile is a share between 0 and 1, such as 0.01.")


@dataclass(frozen=True)
class Lineage:
    """Where what is judged comes from.

    Attributes
    ----------
    parents : dict of str to str
        URI -> fingerprint of what the evaluation reads.
    trained_on : tuple of (str, str)
        URI and split of the galaxies that the denoisers behind the synthetic galaxies have seen.
    """

    parents: dict[str, str]
    trained_on: tuple[tuple[str, str], ...]


def check_lineage(config: EvaluateConfig) -> Lineage:
    """Make sure that the judging galaxies are unseen, and that the classifier is independent.

    Raises
    ------
    LineageError
        A denoiser or the classifier has seen the judging split; the classifier has learnt from
        synthetic galaxies; or the synthetic galaxies' denoiser cannot be vouched for.
    """
    synthetic, classifier, galaxies = map(
        config.location, (config.synthetic, config.classifier, config.galaxies)
    )
    read = ((synthetic, "synthetic"), (classifier, "classifier"), (galaxies, "galaxies"))
    parents = {place.uri: Manifest.read(place, kind).fingerprint for place, kind in read}
    behind, judge = ancestry(synthetic), ancestry(classifier)
    refuse_seen(behind | judge, (config.split,), "these synthetic galaxies")
    for uri in judge[classifier.uri].parents:
        if judge[uri].kind == "synthetic":
            raise LineageError(
                f"{classifier.uri} has learnt from the synthetic galaxies {uri}, so it cannot judge any. "
                "Train one on real galaxies alone: jobs/classify.py classes."
            )
    denoisers = [manifest.lineage for manifest in behind.values() if manifest.kind == "denoiser"]
    seen = {(uri, split) for of in denoisers for uri in of["trained_on"] for split in of["splits"]}
    if not seen:
        raise LineageError(f"{synthetic.uri} names no denoiser that it comes from. Synthesize again.")
    return Lineage(parents, tuple(sorted(seen)))


@dataclass(frozen=True)
class Shapes:
    """The shapes of a random subset of galaxies, NaN where they could not be measured.

    Attributes
    ----------
    real, synthetic : dict of str to ndarray of float64
        By the names of `MORPHOMETRY`.
    draws : list of Draw
        Of their rows.
    failures : dict of str to Counter
        ``real`` or ``synthetic`` -> reason -> galaxies.
    """

    real: dict[str, np.ndarray]
    synthetic: dict[str, np.ndarray]
    draws: list[Draw]
    failures: dict[str, Counter[str]]


@dataclass(frozen=True)
class Neighbours:
    """The nearest training galaxies to some of the galaxies.

    Attributes
    ----------
    synthetic, held_out : Sample
        Whose neighbours they are; of equal counts in each stratum.
    nearest : dict of str to (Nearest, Nearest)
        ``features`` and ``pixels`` -> of the synthetic, of the held-out real galaxies.
    training : int
        Training galaxies that were searched.
    """

    synthetic: Sample
    held_out: Sample
    nearest: dict[str, tuple[Nearest, Nearest]]
    training: int


@dataclass(frozen=True)
class Evidence:
    """All that an evaluation rests on; of the training galaxies `trained_on` is how bright they are."""

    judge: Judge
    real: Sample
    synthetic: Sample
    trained_on: Light
    draws: list[Draw]
    shapes: Shapes
    neighbours: Neighbours


def gather(config: EvaluateConfig, lineage: Lineage) -> Evidence:
    """Examine, measure and search, on the cluster.

    Raises
    ------
    EmptyInputError
        There are no galaxies to judge, or the two sets have no class in common.
    """
    classifier = config.location(config.classifier)
    judge = Judge.read(classifier)
    real = _sample(config, judge, config.galaxies, config.split, "galaxies")
    synthetic = _sample(config, judge, config.synthetic, None, "synthetic")
    strata = real.stratum(judge), synthetic.stratum(judge)
    if not matched_counts(*strata):
        raise EmptyInputError(
            f"{config.synthetic} and the {config.split} galaxies of {config.galaxies} share no class; known "
            f"are {', '.join(judge.strata)}. Check --galaxies, or synthesize other classes."
        )
    say(f"evaluate: {len(real)} {config.split} and {len(synthetic)} synthetic galaxies; now their shapes")
    shapes = _measured(config, judge, real, synthetic)
    say("evaluate: now their nearest training galaxies")
    training = _training(config, judge, lineage)
    neighbours = _searched(config, judge, training, real, synthetic)
    trained_on = _light(judge, training)
    return Evidence(judge, real, synthetic, trained_on, _draws(config, *strata), shapes, neighbours)


def _sample(config: EvaluateConfig, judge: Judge, uri: str, split: str | None, kind: str) -> Sample:
    location = config.location(uri)
    examined = _examined(config, judge, location, split, kind)
    sample = Sample.gather(examined.iter_batches(batch_size=None, batch_format="numpy"))
    if sample is None:
        raise EmptyInputError(f"{location.uri} has no {split or 'synthetic'} galaxy to judge. Make more.")
    return sample


def _examined(
    config: EvaluateConfig, judge: Judge, location: Location, split: str | None, kind: str
) -> Dataset:
    """Stream galaxies past the classifier."""
    return read_galaxies(location, split, _COLUMNS, kind).map_batches(
        Examine,
        fn_constructor_args=(
            config.location(config.classifier),
            judge,
            config.scaling.threads,
            config.precision,
        ),
        batch_size=config.batch_size,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=config.scaling.workers),
        num_cpus=config.scaling.cpus_per_worker,
        num_gpus=1 if config.scaling.use_gpu else 0,
    )


def _training(config: EvaluateConfig, judge: Judge, lineage: Lineage) -> Dataset:
    """Examine the training galaxies once: what is kept of each lies in Ray's object store, or on disk."""
    examined = (
        _examined(config, judge, config.location(uri), split, "galaxies") for uri, split in lineage.trained_on
    )
    return reduce(Dataset.union, examined).materialize()


def _light(judge: Judge, training: Dataset) -> Light:
    """Read how bright the training galaxies are."""
    columns = ["morphology", "truth", "brightness"]
    batches = list(training.select_columns(columns).iter_batches(batch_size=None, batch_format="numpy"))
    morphology, truth, brightness = (np.concatenate([batch[name] for batch in batches]) for name in columns)
    return Light(judge.stratum(morphology, truth), brightness)


def _draws(config: EvaluateConfig, real: np.ndarray, synthetic: np.ndarray) -> list[Draw]:
    return list(matched_draws(real, synthetic, seed=config.seed, count=config.draws, limit=config.per_draw))


def _matched(
    config: EvaluateConfig, judge: Judge, real: Sample, synthetic: Sample, limit: int
) -> tuple[Sample, Sample]:
    """Draw as many real as synthetic galaxies of each stratum."""
    rng = np.random.default_rng(config.seed)
    counts = matched_counts(real.stratum(judge), synthetic.stratum(judge), limit=limit)
    chosen = [s.take(draw_classes(s.stratum(judge), counts, rng)) for s in (real, synthetic)]
    return chosen[0], chosen[1]


def _measured(config: EvaluateConfig, judge: Judge, real: Sample, synthetic: Sample) -> Shapes:
    """Measure the shapes of a matched random subset."""
    chosen = _matched(config, judge, real, synthetic, config.shapes)
    sides = (("real", config.galaxies, "galaxies"), ("synthetic", config.synthetic, "synthetic"))
    shapes: dict[str, dict[str, np.ndarray]] = {}
    failures: dict[str, Counter[str]] = {}
    for sample, (name, uri, kind) in zip(chosen, sides, strict=True):
        galaxies = galaxies_of(config.location(uri), kind, sample.galaxy_id)
        rows = (
            galaxies.repartition(target_num_rows_per_block=_SHAPES_PER_TASK)
            .map_batches(
                MeasureShapes(judge.config.size_px).__call__, batch_size=None, batch_format="pyarrow"
            )
            .take_all()
        )
        by_id = {row["galaxy_id"]: row for row in rows}
        in_order = [by_id[galaxy] for galaxy in sample.galaxy_id.tolist()]
        shapes[name] = {key: np.array([row[key] for row in in_order]) for key in MORPHOMETRY}
        failures[name] = Counter(row["failure"] for row in in_order if row["failure"])
    strata = (sample.stratum(judge) for sample in chosen)
    return Shapes(shapes["real"], shapes["synthetic"], _draws(config, *strata), failures)


def galaxies_of(location: Location, kind: str, galaxy_id: Sequence[int] | np.ndarray) -> Dataset:
    """Stream the galaxies of some ids, in no particular order."""
    wanted = col("galaxy_id").is_in(np.asarray(galaxy_id).tolist())
    return read_shards(location, kind, ("galaxy_id", "image"), wanted)


def images_of(location: Location, kind: str, galaxy_id: Sequence[int] | np.ndarray) -> dict[int, np.ndarray]:
    """Return the images of some galaxies as they are: id -> uint8 (H, W, 3)."""
    if not len(galaxy_id):
        return {}
    rows = galaxies_of(location, kind, galaxy_id).take_all()
    return {row["galaxy_id"]: decode_rgb(row["image"]) for row in rows}


def _searched(
    config: EvaluateConfig, judge: Judge, training: Dataset, real: Sample, synthetic: Sample
) -> Neighbours:
    """Search the training galaxies, which stream by, for the nearest to a matched random subset."""
    held_out, painted = _matched(config, judge, real, synthetic, config.copies)
    queries = ray.put(
        {
            name: np.concatenate([getattr(painted, name), getattr(held_out, name)])
            for name in ("features", "thumbnail")
        }
    )
    count = len(painted) + len(held_out)
    searched = training.map_batches(
        SearchNearest(queries).__call__,
        batch_size=max(_MOST_PAIRS // count, 16),
        batch_format="numpy",
    )
    found: list[Any] = list(searched.iter_batches(batch_size=None, batch_format="numpy"))
    nearest = {name: _nearest_of_all(found, name, count) for name in ("features", "pixels")}
    split_at = len(painted)
    return Neighbours(
        painted,
        held_out,
        {
            name: (
                Nearest(n.distance[:split_at], n.galaxy_id[:split_at]),
                Nearest(n.distance[split_at:], n.galaxy_id[split_at:]),
            )
            for name, n in nearest.items()
        },
        training=int(sum(batch["searched"][::count].sum() for batch in found)),
    )


def _nearest_of_all(batches: Sequence[Mapping[str, np.ndarray]], name: str, count: int) -> Nearest:
    """Reduce the rows of `SearchNearest` to the nearest of all training galaxies."""
    distance, ids = (
        np.concatenate([batch[f"{name}_{part}"] for batch in batches]).reshape(-1, count)
        for part in ("distance", "id")
    )
    best = distance.argmin(axis=0), np.arange(count)
    return Nearest(distance[best], ids[best])
