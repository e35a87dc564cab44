"""Search guidance scale x augmentation ratio against completeness and purity, on Ray Tune."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from matplotlib.figure import Figure
from ray import tune
from ray.tune import ResultGrid, Tuner
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import AsyncHyperBandScheduler

from galray.classifier.train import PRESETS as CLASSIFIERS
from galray.classifier.train import ClassifyConfig, check_lineage, fit
from galray.core.cluster import say
from galray.core.config import JobConfig, Preset, require
from galray.core.errors import TrainingError
from galray.core.manifest import Manifest, publish, standing, write_parquet
from galray.core.storage import Location
from galray.core.tracking import ReportToRun, Run, track
from galray.diffusion.synthesize import PRESETS as SYNTHESES
from galray.diffusion.synthesize import SynthesizeConfig, synthesize

TRIALS = "tune"
OBJECTIVE = "average_precision"
# A trial waits for its classifier's workers: it must not hold a core that they need.
_WAITS: dict[str, float] = {"CPU": 0, "memory": 1 << 20}
_FIGURES = (OBJECTIVE, "completeness", "purity", "f1")


@dataclass(frozen=True, kw_only=True)
class SearchConfig(JobConfig):
    """Which points to try, and how each is tried."""

    guidance_scales: tuple[float, ...] = (1.0, 2.0, 4.0)
    augmentation_ratios: tuple[float, ...] = (0.05, 0.2)
    """Synthetic galaxies for each real one. The search always tries none as well."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Each point is tried once with each seed."""
    synthesize: SynthesizeConfig = field(default_factory=SynthesizeConfig)
    classify: ClassifyConfig = field(default_factory=lambda: CLASSIFIERS["laptop"].config)
    output: str = "{root}/search"
    concurrent_trials: int = 1
    """Trials at a time; each holds the workers of its classifier's scaling."""
    grace_epochs: int = 4
    """Epochs before a trial can be stopped for falling behind."""

    def __post_init__(self) -> None:
        require(bool(self.guidance_scales), "--guidance-scales is empty; give at least one.")
        require(min(self.augmentation_ratios, default=0) > 0, "--augmentation-ratios must all be above 0.")
        require(len(set(self.seeds)) == len(self.seeds) > 0, "--seeds must be given, each once.")
        require(self.concurrent_trials >= 1, "--concurrent-trials must be at least 1.")

    def points(self) -> list[dict[str, float]]:
        """Return the points of the search: no synthetic galaxies first, then every combination."""
        return [{"guidance_scale": 0.0, "augmentation_ratio": 0.0}] + [
            {"guidance_scale": guidance, "augmentation_ratio": ratio}
            for guidance in self.guidance_scales
            for ratio in self.augmentation_ratios
        ]

    def synthesis(self, guidance_scale: float) -> SynthesizeConfig:
        """Return how the set of one guidance scale is painted; trials share it."""
        return replace(
            self.synthesize,
            root=self.root,
            resume=True,
            guidance_scale=guidance_scale,
            output=f"{self.output}-synthetic-{guidance_scale:g}",
        )

    def classification(self, guidance_scale: float, augmentation_ratio: float, seed: int) -> ClassifyConfig:
        """Return how the classifier of one trial is trained."""
        synthetic = self.synthesis(guidance_scale).output if augmentation_ratio else ""
        return replace(
            self.classify,
            root=self.root,
            synthetic=synthetic,
            augmentation_ratio=augmentation_ratio,
            seed=seed,
        )


def search(config: SearchConfig) -> Manifest:
    """Find how strongly to guide the denoiser, and how many of its galaxies to learn from.

    Judged on validation galaxies alone: test galaxies stay unseen until the point is chosen.
    """
    output = config.location(config.output)
    done = standing(output, "search", config.resume)
    if done:
        say(f"tune: {output.uri} stands")
        return done
    for guidance_scale in config.guidance_scales:
        synthesize(config.synthesis(guidance_scale))
    parents: dict[str, str] = {}
    for point in config.points():
        parents |= check_lineage(config.classification(**point, seed=config.seeds[0]))
    with track("tune", config) as run, publish(output, "search", config.resolved(), parents) as publication:
        trials = trial_table(_run_trials(config, output, run))
        points = summarise(trials)
        best = points.iloc[0].to_dict()
        publication.add(write_parquet(output, "trials.parquet", pa.Table.from_pandas(trials)))
        publication.write("points.csv", points.to_csv(index=False))
        publication.write("best.json", json.dumps(best, indent=1))
        publication.counts |= {"trials": len(trials), "points": len(points)}
        run.figure(heat_map(points), "guidance_x_ratio.png")
        run.text(points.to_csv(index=False), "points.csv")
        run.metrics({f"best.{name}": value for name, value in best.items()})
    say(
        f"tune: {len(trials)} trials; best average precision {best[OBJECTIVE]:.3f} at guidance "
        f"{best['guidance_scale']:g}, {best['augmentation_ratio']:g} synthetic galaxies for each real one"
    )
    return Manifest.read(output)


def _run_trials(config: SearchConfig, output: Location, run: Run) -> ResultGrid:
    trainable = tune.with_resources(
        tune.with_parameters(_trial, config=config, storage=output / "trials", run=run), _WAITS
    )
    path = output / TRIALS
    if config.resume and Tuner.can_restore(path.path, storage_filesystem=path.filesystem):
        tuner = Tuner.restore(
            path.path, trainable=trainable, resume_errored=True, storage_filesystem=path.filesystem
        )
    else:
        tuner = Tuner(
            trainable,
            param_space={
                "point": tune.grid_search(config.points()),
                "seed": tune.grid_search(list(config.seeds)),
            },
            tune_config=tune.TuneConfig(
                max_concurrent_trials=config.concurrent_trials,
                scheduler=AsyncHyperBandScheduler(
                    time_attr="step",
                    metric=OBJECTIVE,
                    mode="max",
                    max_t=config.classify.epochs,
                    grace_period=min(config.grace_epochs, config.classify.epochs),
                ),
            ),
            run_config=tune.RunConfig(
                name=TRIALS,
                storage_path=output.path,
                storage_filesystem=output.filesystem,
                verbose=0,
            ),
        )
    return tuner.fit()


def _trial(params: dict[str, Any], config: SearchConfig, storage: Location, run: Run) -> None:
    """Train the classifier of one point and seed; Ray Tune follows its epochs."""
    point, seed = params["point"], params["seed"]
    name = f"guidance {point['guidance_scale']:g}, ratio {point['augmentation_ratio']:g}, seed {seed}"
    trial_id = tune.get_context().get_trial_id()
    child = run.child(name, {"galray.trial": str(trial_id)})
    child.params({**point, "seed": seed})
    fit(
        config.classification(**point, seed=seed),
        storage / str(trial_id),
        [TuneReportCallback(), ReportToRun(child)],
    )
    child.end()


def trial_table(results: ResultGrid) -> pd.DataFrame:
    """Return one row for each trial: its point, seed and last validation figures.

    Raises
    ------
    TrainingError
        A trial was interrupted before its first epoch: Ray Tune returns at the first Ctrl-C.
    """
    rows = []
    for result in results:
        if result.error:
            raise RuntimeError(f"A trial failed: {result.error}. Mend its cause, then go on with --resume.")
        metrics = result.metrics or {}
        if not result.config or OBJECTIVE not in metrics:
            raise TrainingError("The search was interrupted: not every trial has run. Go on with --resume.")
        figures = {name: metrics[name] for name in _FIGURES}
        epochs = metrics["step"]
        rows.append({**result.config["point"], "seed": result.config["seed"], "epochs": epochs, **figures})
    return pd.DataFrame(rows)


def summarise(trials: pd.DataFrame) -> pd.DataFrame:
    """Return one row for each point, best first: means over seeds, and the objective's standard error."""
    grouped: Any = trials.groupby(["guidance_scale", "augmentation_ratio"])
    points = grouped[list(_FIGURES)].mean()
    points[f"{OBJECTIVE}_standard_error"] = grouped[OBJECTIVE].sem()
    points["seeds"] = grouped.size()
    return points.sort_values(OBJECTIVE, ascending=False, kind="stable").reset_index()


def heat_map(points: pd.DataFrame) -> Figure:
    """Draw the mean objective of every point, with its standard error where there are several seeds."""
    augmented: Any = points[points["augmentation_ratio"] > 0]
    grid = augmented.pivot(index="guidance_scale", columns="augmentation_ratio", values=OBJECTIVE)
    errors = augmented.pivot(
        index="guidance_scale", columns="augmentation_ratio", values=f"{OBJECTIVE}_standard_error"
    )
    figure = Figure(figsize=(3.0 + 1.2 * grid.shape[1], 2.0 + 0.7 * grid.shape[0]), layout="constrained")
    ax = figure.subplots()
    ax.imshow(grid, cmap="cividis", aspect="auto", origin="lower", vmin=0, vmax=1)
    for (row, column), value in np.ndenumerate(grid.to_numpy()):
        error = errors.to_numpy()[row, column]
        text = f"{value:.3f}" if np.isnan(error) else f"{value:.3f}\n± {error:.3f}"
        colour = "black" if value > 0.6 else "white"
        ax.text(column, row, text, ha="center", va="center", color=colour, fontsize=9)
    _label_axes(ax, grid.columns.tolist(), grid.index.tolist())
    real_only = points.loc[points["augmentation_ratio"] == 0, OBJECTIVE]
    ax.set_title(f"validation average precision\nreal only: {real_only.mean():.3f}", fontsize=9)
    return figure


def _label_axes(ax: Any, ratios: Sequence[float], guidances: Sequence[float]) -> None:
    ax.set_xticks(range(len(ratios)), [f"{ratio:g}" for ratio in ratios])
    ax.set_yticks(range(len(guidances)), [f"{guidance:g}" for guidance in guidances])
    ax.set(xlabel="synthetic for each real galaxy", ylabel="guidance scale")


PRESETS = {
    "laptop": Preset("guidance x ratio with three seeds: an hour on two cores", SearchConfig()),
    "debug": Preset(
        "two points, one seed, seconds each",
        SearchConfig(
            guidance_scales=(2.0,),
            augmentation_ratios=(0.25,),
            seeds=(0,),
            synthesize=SYNTHESES["debug"].config,
            classify=CLASSIFIERS["debug"].config,
        ),
    ),
}
