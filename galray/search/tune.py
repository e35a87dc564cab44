"""Search how to paint galaxies, and how many to learn from, for what finds rare ones best, on Ray Tune."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pandas as pd
import pyarrow as pa
import ray
from ray import tune
from ray.tune import Tuner
from ray.tune.execution.class_cache import ENV_VARS_TO_PROPAGATE
from ray.tune.schedulers import AsyncHyperBandScheduler

from galray.classifier import network
from galray.classifier.examples import Examples
from galray.classifier.judging import judge, read_predictions
from galray.classifier.train import CHECKPOINTS, check_lineage
from galray.core.cluster import say
from galray.core.errors import PublishError, TrainingError
from galray.core.manifest import Manifest, Publication, publish, standing, write_parquet
from galray.core.pictures import png
from galray.core.storage import Location
from galray.core.tracking import Run, track
from galray.diffusion.synthesize import synthesize
from galray.search.config import OF_CLASSES, OF_TARGET, PRESETS, SearchConfig
from galray.search.figures import heat_map, pareto_front
from galray.search.ranking import SHARE, over_seeds, point_of, rank, why
from galray.search.records import TrialRecord, begun, trial_rows
from galray.search.space import REAL_ONLY, Point
from galray.search.suggest import PointSearch
from galray.search.trial import FOLLOWED, EndTrials, try_point

__all__ = ["PRESETS", "SearchConfig", "search"]

PLAN = "plan.json"
_DPI = 140
TUNE = "tune"  # what Ray Tune writes for itself, deleted at the end
_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN")
# A trial waits for its classifier's workers: it must not hold a core that they need.
_WAITS: dict[str, float] = {"CPU": 0, "memory": 1 << 20}


def search(config: SearchConfig) -> Manifest:
    """Find how strongly to guide the denoiser, and how many of its galaxies to learn from.

    Points are ranked on validation galaxies alone. The chosen one, and real galaxies alone beside it, are
    then judged once on test galaxies, by the classifiers of their trials.
    """
    output = config.location(config.output)
    done = standing(output, "search", config.resume)
    if done:
        say(f"tune: {output.uri} stands")
        return done
    # Before any trial: all cores paint, none waits for another's galaxies, and no set is painted twice.
    for painting in config.space.paintings():
        synthesize(config.synthesis(painting))
    examples = [config.classification(point, config.seeds[0]) for point in config.space.one_of_each_set()]
    parents = {uri: known for one in examples for uri, known in check_lineage(one).items()}
    with track("tune", config) as run, publish(output, "search", config.resolved(), parents) as publication:
        check_plan(config, output)
        for one in examples:  # trials beside each other must find their galaxies decoded
            Examples.of(one)
        run_trials(config, output, run)
        trials = trial_table(config, output)
        points = rank(trials, config.objectives, len(config.seeds))
        best = conclude(config, output, trials, points)
        _publish(publication, run, config, trials, points, best)
    for record in begun(output):
        for seed in config.seeds:
            (record.seed(seed) / CHECKPOINTS).delete()
    (output / TUNE).delete()
    say(f"tune: {len(points)} points; {best['why'].splitlines()[0]}")
    return Manifest.read(output)


def check_plan(config: SearchConfig, output: Location) -> None:
    """Refuse to go on with trials that were begun with other options.

    Raises
    ------
    PublishError
    """
    plan = json.dumps({"plan": config.plan()}).encode()
    if not (output / PLAN).create(plan) and (output / PLAN).read_bytes() != plan:
        raise PublishError(
            f"{output.uri} holds trials that were begun with other options. Go on with those, give another "
            "--output, or delete the folder to start over."
        )


def run_trials(config: SearchConfig, output: Location, run: Run) -> None:
    """Try the points that are not tried yet; those that are tell Ray Tune what they told before.

    Raises
    ------
    TrainingError
        Interrupted: Ray Tune returns at the first Ctrl-C.
    """
    (output / TUNE).delete()  # an interrupted run's; see galray.search.records
    # Ray Tune would send the driver's keys to its trials, and Ray writes what it sends into its logs. The
    # nodes have keys of their own.
    ENV_VARS_TO_PROPAGATE.difference_update(_KEYS)
    trainable = tune.with_resources(
        tune.with_parameters(try_point, config=config, search=output, run=run), _WAITS
    )
    optuna = config.strategy == "optuna"
    known = [record.point for record in begun(output)]
    tuner = Tuner(
        trainable,
        param_space={} if optuna else {"point": tune.grid_search([asdict(p) for p in config.space.points()])},
        tune_config=tune.TuneConfig(
            search_alg=PointSearch(config.space, known, config.objectives, config.seeds[0])
            if optuna
            else None,
            num_samples=config.budget if optuna else 1,
            max_concurrent_trials=config.concurrent_trials or concurrent_trials(config),
            scheduler=halving(config),
        ),
        run_config=tune.RunConfig(
            name=TUNE,
            storage_path=output.path,
            storage_filesystem=output.filesystem,
            callbacks=[EndTrials(output, run, (*OF_TARGET, *OF_CLASSES))],
            verbose=0,
        ),
    )
    failed = [result.error for result in tuner.fit() if result.error]
    if failed:
        raise RuntimeError(
            f"{len(failed)} trial(s) failed: {failed[0]}. Mend the cause, then go on with --resume."
        ) from failed[0]
    ended = sum(record.ended for record in begun(output))
    if ended < config.points:
        raise TrainingError(
            f"The search was interrupted: {ended} of {config.points} points have been tried. "
            "Go on with --resume."
        )


def halving(config: SearchConfig) -> AsyncHyperBandScheduler:
    """Return the scheduler (ASHA, Li et al. 2020, arXiv:1810.05934); it counts epochs over all seeds."""
    epochs = config.classify.epochs * len(config.seeds)
    return AsyncHyperBandScheduler(
        time_attr=FOLLOWED,
        metric=config.followed,
        mode="max",
        max_t=epochs + 1,  # the last report ends a trial by itself
        grace_period=min(config.grace_epochs, epochs),
        reduction_factor=2,
    )


def concurrent_trials(config: SearchConfig) -> int:
    """Return how many trials' workers the cluster holds at once."""
    scaling, there = config.classify.scaling, ray.cluster_resources()
    needed = {"CPU": scaling.workers * scaling.cpus_per_worker, "GPU": scaling.workers * scaling.use_gpu}
    fitting = [int(there.get(name, 0) // count) for name, count in needed.items() if count]
    return max(1, min(fitting))


def trial_table(config: SearchConfig, output: Location) -> pd.DataFrame:
    """Return one row for each point and seed: its last validation figures, and whether it is through."""
    rows = [row for record in begun(output) for row in trial_rows(record, config.seeds)]
    return pd.DataFrame(rows)


def conclude(
    config: SearchConfig, output: Location, trials: pd.DataFrame, points: pd.DataFrame
) -> dict[str, Any]:
    """Return the chosen point, why it was chosen, and what it is worth on test galaxies."""
    chosen = point_of(points.iloc[0])
    judged = {"chosen": chosen, "real_only": REAL_ONLY}
    return {
        "point": asdict(chosen),
        "why": why(points, trials, config.objectives),
        "test": {name: judge_on_test(config, output, point) for name, point in judged.items()},
    }


def judge_on_test(config: SearchConfig, output: Location, point: Point) -> dict[str, Any]:
    """Judge a point's classifiers on test galaxies: each figure's mean over seeds, and each seed's report.

    Thresholds are those of validation galaxies.
    """
    reports = {seed: _test_report(TrialRecord.of(output, point).seed(seed)) for seed in config.seeds}
    figures = pd.DataFrame([_figures(report) for report in reports.values()])
    means = {str(name): over_seeds(figures[name].to_numpy(), SHARE).as_dict() for name in figures}
    return {**means, "seeds": reports}


def _test_report(trial: Location) -> dict[str, Any]:
    return judge(read_predictions(trial), network.published_settings(trial, "trial"))[1]["test"]


def _figures(report: dict[str, Any]) -> dict[str, float]:
    figures = {name: report["morphology"][name] for name in OF_CLASSES}
    if "average_precision" in report:
        figures |= {name: report[name] for name in OF_TARGET[1:]}
        figures |= {OF_TARGET[0]: report[OF_TARGET[0]]["value"]}
    return figures


def _publish(
    publication: Publication,
    run: Run,
    config: SearchConfig,
    trials: pd.DataFrame,
    points: pd.DataFrame,
    best: dict[str, Any],
) -> None:
    publication.add(write_parquet(publication.location, "trials.parquet", pa.Table.from_pandas(trials)))
    publication.counts |= {"trials": len(trials), "points": len(points)}
    publication.lineage = {"judged_on": ["validation", "test"]}
    figures = {"guidance_x_ratio.png": heat_map(points, config.followed)}
    if config.classify.target:
        figures["completeness_purity.png"] = pareto_front(points)
    for name, figure in figures.items():
        image = png(figure, _DPI)
        publication.write(name, image)
        run.file(name, image)
    texts = {
        "points.csv": points.to_csv(index=False),
        "why.txt": best["why"],
        "best.json": json.dumps(best, indent=1),
    }
    for name, text in texts.items():
        publication.write(name, text)
        run.text(text, name)
    means = {name: value["value"] for name, value in best["test"]["chosen"].items() if name != "seeds"}
    run.metrics({f"test.{name}": value for name, value in means.items()})
    run.metrics({f"best.{name}": value for name, value in best["point"].items()})
