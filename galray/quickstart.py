"""The whole chain on a mock survey whose truth is known: from labelled galaxies to candidates.

Every step is the job of the same name with a small configuration, in one Ray session; the last
one opens the truth and says what was found, with and without synthetic galaxies.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from galray.classifier.detection import Detection, average_precision, completeness_purity
from galray.classifier.figures import curve_figure
from galray.classifier.targets import find_target, truth
from galray.classifier.train import PRESETS as CLASSIFIERS
from galray.classifier.train import ClassifyConfig, classify
from galray.core.cluster import say
from galray.core.config import JobConfig, Preset
from galray.core.errors import PublishError
from galray.core.intervals import Estimate, bootstrapped
from galray.core.manifest import MANIFEST, Manifest, publish
from galray.core.pictures import blank_figure, png
from galray.core.shards import shard_paths
from galray.core.tracking import track, tracking_uri
from galray.data.images import decode_rgb
from galray.data.ingest import PRESETS as INGESTS
from galray.data.ingest import IngestConfig, ingest
from galray.data.survey import PRESETS as SURVEYS
from galray.data.survey import SurveyConfig, make_survey
from galray.diffusion.synthesize import SynthesizeConfig
from galray.diffusion.train import PRESETS as DENOISERS
from galray.diffusion.train import TrainConfig, train
from galray.scan.options import PRESETS as SCANS
from galray.scan.options import ScanConfig
from galray.scan.scan import scan
from galray.search.ranking import point_of
from galray.search.tune import PRESETS as SEARCHES
from galray.search.tune import SearchConfig, search

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUMMARY = "summary.md"
_SHOWN = 8
_DPI = 120
_ARMS = {"real-only": "real galaxies only", "augmented": "real and synthetic galaxies"}


_SMALL_SEARCH = replace(
    SEARCHES["laptop"].config,
    guidance_scales=(1.5, 3.0),
    augmentation_ratios=(0.1,),
    seeds=(0,),
    synthesize=SynthesizeConfig(count=150, num_steps=12),
    classify=replace(CLASSIFIERS["laptop"].config, epochs=4),
    concurrent_trials=1,  # with all threads: two at a time take more memory, and no less time for three
)


@dataclass(frozen=True, kw_only=True)
class QuickstartConfig(JobConfig):
    """The chain's steps; each has the options of its own job."""

    root: str = "runs/quickstart"
    survey: SurveyConfig = field(default_factory=SurveyConfig)
    ingest: IngestConfig = field(default_factory=lambda: INGESTS["mock"].config)
    train: TrainConfig = field(default_factory=lambda: DENOISERS["laptop"].config)
    search: SearchConfig = field(default_factory=lambda: _SMALL_SEARCH)
    classify: ClassifyConfig = field(default_factory=lambda: CLASSIFIERS["laptop"].config)
    scan: ScanConfig = field(default_factory=lambda: SCANS["laptop"].config)
    output: str = "{root}/summary"

    def step(self, config: Any, **changes: Any) -> Any:
        """Return a step's configuration within this pipeline; what is done is kept."""
        return replace(config, root=self.root, resume=True, **changes)


def quickstart(config: QuickstartConfig) -> Manifest | None:
    """Run the whole chain on the mock survey: ingest, train, paint, classify, search, scan, compare.

    Raises
    ------
    PublishError
        A run that was interrupted stands there, and --resume is not given.
    """
    output = config.location(config.output)
    if (output / MANIFEST).exists():
        say(f"quickstart: a finished run stands in {config.root_location.uri}")
        print((output / SUMMARY).read_bytes().decode() + _how_to_start_over(config))
        return Manifest.read(output, "summary")
    _refuse_unfinished(config)
    seconds: dict[str, float] = {}
    _timed(seconds, "mock survey", lambda: make_survey(config.step(config.survey)))
    _timed(seconds, "ingest", lambda: ingest(config.step(config.ingest)))
    _timed(seconds, "train the denoiser", lambda: train(config.step(config.train)))
    _timed(seconds, "paint and search", lambda: search(config.step(config.search)))
    arms = {"real-only": config.step(config.classify), "augmented": _augmented(config)}
    for name, arm in arms.items():
        classifier = f"{{root}}/classifier-{name}"
        _timed(seconds, f"classify, {name}", lambda a=arm, c=classifier: classify(replace(a, output=c)))
        scanning = config.step(
            config.scan,
            classifier=classifier,
            output=f"{{root}}/scan-{name}",
            candidates=f"{{root}}/candidates-{name}",
        )
        _timed(seconds, f"scan, {name}", lambda s=scanning: scan(s))
    return _compare(config, seconds)


def _timed(seconds: dict[str, float], name: str, run: Callable[[], object]) -> None:
    say(f"quickstart: {name}")
    started_s = time.monotonic()
    run()
    seconds[name] = time.monotonic() - started_s


def _refuse_unfinished(config: QuickstartConfig) -> None:
    root = config.root_location
    begun = sorted({name.split("/")[0] for name in root.names()})
    if begun and not config.resume:
        raise PublishError(
            f"{root.uri} holds an interrupted run ({', '.join(begun)}). "
            "Go on with `make quickstart RESUME=1`, or start over: delete it, or give another --root."
        )


def _how_to_start_over(config: QuickstartConfig) -> str:
    return (
        f"\nTo start over, delete {config.root_location.uri}, or run `make quickstart ROOT=runs/another`.\n"
    )


def _augmented(config: QuickstartConfig) -> ClassifyConfig:
    """Return the augmented classifier at the best point of the search that has synthetic galaxies."""
    searched = config.step(config.search)
    points = pd.read_csv(io.BytesIO((searched.location(searched.output) / "points.csv").read_bytes()))
    best = point_of(points[points["augmentation_ratio"] > 0].iloc[0])
    assert best.painting  # it has a ratio
    return config.step(
        config.classify,
        synthetic=searched.synthesis(best.painting).output,
        augmentation_ratio=best.augmentation_ratio,
    )


def _compare(config: QuickstartConfig, seconds: dict[str, float]) -> Manifest:
    """Open the truth, and publish what each classifier found of it."""
    output = config.location(config.output)
    known = _truth(config)
    arms = {name: _judged(config, name, known) for name in _ARMS}
    parents = {
        place.uri: Manifest.read(place).fingerprint
        for place in (config.location(f"{{root}}/candidates-{name}") for name in _ARMS)
    }
    with (
        track("quickstart", config) as run,
        publish(output, "summary", config.resolved(), parents) as publication,
    ):
        text = _summary(config, arms, seconds)
        publication.write(SUMMARY, text)
        publication.write("summary.json", json.dumps({n: a.as_dict() for n, a in arms.items()}, indent=1))
        for name, figure in _figures(config, arms).items():
            image = png(figure, _DPI)
            publication.write(name, image)
            run.file(name, image)
        run.text(text, SUMMARY)
        for name, arm in arms.items():
            run.metrics({f"{name}.{key}": value for key, value in arm.as_dict().items()})
    print(text + _how_to_start_over(config))
    return Manifest.read(output)


@dataclass(frozen=True)
class Arm:
    """What one classifier found on the tiles."""

    detection: Detection
    average_precision: Estimate
    predictions: pa.Table

    def as_dict(self) -> dict[str, float]:
        precision = self.average_precision
        return {
            **self.detection.as_dict(),
            "average_precision": precision.value,
            "average_precision_low": precision.low,
            "average_precision_high": precision.high,
        }


def _truth(config: QuickstartConfig) -> pa.Table:
    survey = config.location(config.step(config.survey).output)
    data = (survey / "truth/tiles.parquet").read_bytes()
    return pq.read_table(pa.BufferReader(data), columns=["galaxy_id", "dust_lane_early_type"])


def _judged(config: QuickstartConfig, name: str, known: pa.Table) -> Arm:
    scores = config.location(f"{{root}}/scan-{name}")
    table = pads.dataset(shard_paths(scores, "scores"), filesystem=scores.filesystem).to_table(
        columns=["galaxy_id", "score"]
    )
    joined = table.join(known, "galaxy_id")
    is_true = joined["dust_lane_early_type"].to_numpy().astype(np.int8)
    score = joined["score"].to_numpy()
    decision = Manifest.read(config.location(f"{{root}}/candidates-{name}"), "candidates").lineage
    return Arm(
        completeness_purity(is_true, score, decision["threshold"]),
        bootstrapped(average_precision, is_true, score, seed=0),
        pa.table({"truth": is_true, "score": score}),
    )


def _figures(config: QuickstartConfig, arms: dict[str, Arm]) -> dict[str, Figure]:
    curves = curve_figure({_ARMS[name]: arm.predictions for name, arm in arms.items()})
    return {"completeness_purity.png": curves, "galaxies.png": _galaxies_figure(config)}


def _galaxies_figure(config: QuickstartConfig) -> Figure:
    """Show dust-lane early types that volunteers found above painted ones."""
    painted = config.search.synthesis(config.search.space.paintings()[0]).output
    rows = {
        "as volunteers found them": _positives(config, config.ingest.output, "galaxies"),
        "as the denoiser paints them": _positives(config, painted, "synthetic"),
    }
    figure = blank_figure(9, 2.6)
    axes = figure.subplots(len(rows), _SHOWN)
    for row, (title, images) in zip(axes, rows.items(), strict=True):
        row[0].set_title(title, loc="left", fontsize=8)
        for ax in row:
            ax.axis("off")
        for ax, image in zip(row, images, strict=False):
            ax.imshow(decode_rgb(image))
    return figure


def _positives(config: QuickstartConfig, uri: str, kind: str) -> list[bytes]:
    """Return the first images of the target in published galaxies."""
    place, target = config.step(config.ingest).location(uri), find_target(config.classify.target)
    images: list[bytes] = []
    for shard in pads.dataset(shard_paths(place, kind), filesystem=place.filesystem).to_batches():
        galaxies = pa.Table.from_batches([shard])
        images += galaxies.filter(pa.array(truth(galaxies, target) == 1))["image"].to_pylist()
        if len(images) >= _SHOWN:
            break
    return images[:_SHOWN]


def _summary(config: QuickstartConfig, arms: dict[str, Arm], seconds: dict[str, float]) -> str:
    """Say what was found, and where to look, as Markdown that reads well at a terminal."""
    place, first = config.root_location.uri, next(iter(arms.values())).detection
    true = first.true_positives + first.false_negatives
    sources = true + first.false_positives + first.true_negatives
    lines = [
        f"# {config.classify.target} on the mock survey",
        "",
        f"{true} among {sources} sources on the tiles. The truth was opened after the candidates were",
        "written; thresholds come from validation galaxies; intervals are 95%.",
        "",
        "| classifier learnt from | completeness | purity | average precision |",
        "| --- | --- | --- | --- |",
    ]
    for name, arm in arms.items():
        found = arm.detection
        lines.append(f"| {_ARMS[name]} | {found.completeness} | {found.purity} | {arm.average_precision} |")
    lines += [
        "",
        f"One run with seed {config.classify.seed}: a try-out, not a study: mind the intervals.",
        "",
        "Where to look:",
        f"- candidates to grade: {place}/candidates-augmented/index.html",
        f"- figures: {place}/summary/completeness_purity.png and galaxies.png",
        f"- all runs: mlflow ui --backend-store-uri {tracking_uri(config)}",
        "",
        "Time: " + ", ".join(f"{name} {taken:.0f} s" for name, taken in seconds.items()),
        "",
    ]
    return "\n".join(lines)


_DEBUG = QuickstartConfig(
    root="runs/quickstart-debug",
    survey=SURVEYS["debug"].config,
    ingest=INGESTS["debug"].config,
    train=DENOISERS["debug"].config,
    search=SEARCHES["debug"].config,
    classify=CLASSIFIERS["debug"].config,
    scan=SCANS["debug"].config,
)

PRESETS = {
    "laptop": Preset("about a quarter of an hour on two cores", QuickstartConfig()),
    "debug": Preset("the same steps, tiny: to see that everything runs", _DEBUG),
}
