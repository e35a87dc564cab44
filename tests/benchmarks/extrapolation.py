"""Can the denoiser paint what it has never seen? Dust lanes in early types, learnt from disks alone.

    python tests/benchmarks/extrapolation.py FOLDER [steps] [guidance scale]

One mock survey has dust lanes in edge-on disks, many of them in great bulges, and none in early types: a
denoiser trains on it. Another, of other galaxies, has them in a quarter of its early types: a classifier
trains on it. The denoiser then paints early types with a dust lane, asked for shape first and lane after
(``outline``) or for both at once, and early types without that request; the classifier, at the threshold that
its validation galaxies chose, says which of them it takes for early types with a dust lane. Its test galaxies
say how far to trust it. Keeps all runs and ``painted.png`` in FOLDER, and goes on where it was interrupted.
Prints one JSON object on the last line.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hardware import hardware
from matplotlib.figure import Figure

from galray.classifier import network
from galray.classifier.decision import Decision
from galray.classifier.targets import DUST_LANE_EARLY_TYPE, truth
from galray.classifier.train import PRESETS as CLASSIFIERS
from galray.classifier.train import classify
from galray.core.cluster import Scaling, connect
from galray.core.intervals import Rate
from galray.core.manifest import Manifest
from galray.core.precision import in_bfloat16
from galray.core.shards import SHARDS
from galray.core.storage import Location, open_location
from galray.data.batches import decode_images
from galray.data.images import decode_rgb
from galray.data.ingest import PRESETS as INGESTS
from galray.data.ingest import ingest
from galray.data.mock import MockConfig
from galray.data.survey import SurveyConfig, make_survey
from galray.diffusion.synthesize import SynthesizeConfig, synthesize
from galray.diffusion.train import PRESETS as DENOISERS
from galray.diffusion.train import train

PAINTED = 200
# Volunteers call a lane odd in 3% of edge-on disks, here as in Stripe 82: it takes many galaxies.
DISKS_ONLY, EVERYTHING = 20_000, 5000
SEED = 2  # how to paint was chosen with a classifier and noise of other seeds
RECIPES = {
    "asked_in_turn": """\
- {label: in_between, outline: {smooth: 0.8, in_between: 0.8}, answers: {odd: 0.4, dust_lane: 0.7}}
- {label: round, outline: {smooth: 0.8, completely_round: 0.8}, answers: {odd: 0.4, dust_lane: 0.7}}
""",
    "asked_at_once": """\
- {label: in_between, answers: {smooth: 0.8, in_between: 0.8, odd: 0.4, dust_lane: 0.7}}
- {label: round, answers: {smooth: 0.8, completely_round: 0.8, odd: 0.4, dust_lane: 0.7}}
""",
    "not_asked": """\
- {label: in_between, answers: {smooth: 0.8, in_between: 0.8, not_odd: 0.95}}
- {label: round, answers: {smooth: 0.8, completely_round: 0.8, not_odd: 0.95}}
""",
}
SHOWN = 12
WITHOUT = MockConfig(dust_lane_fraction_early=0.0, edge_on=0.28, great_bulge_fraction_edge_on=0.6)


def main(folder: str, steps: int = 12_000, guidance_scale: float = 4.0) -> None:
    disks_only, everything = Path(folder, "disks-only"), Path(folder, "everything")
    with connect():
        extrapolate(folder, steps)
        painted = {
            name: paint(disks_only, name, written(disks_only, name), guidance_scale, PAINTED)
            for name in RECIPES
        }
    classifier = open_location(str(everything / "classifier"))
    figures = {
        "hardware": hardware(),
        "steps": steps,
        "guidance_scale": guidance_scale,
        "seeds": {"disks_only": 0, "denoiser": 0, "everything": SEED, "classifier": SEED, "painting": SEED},
        "shown_to_the_denoiser": shown(disks_only),
        "classifier_on_test": on_test(classifier),
        **{name: accepted(classifier, place).as_dict() for name, place in painted.items()},
    }
    picture(painted).savefig(Path(folder, "painted.png"), dpi=110)
    print(json.dumps(figures))


def extrapolate(folder: str, steps: int) -> None:
    """Train the denoiser that has seen lanes in disks alone, and the classifier that knows better."""
    disks_only, everything = Path(folder, "disks-only"), Path(folder, "everything")
    make_galaxies(disks_only, DISKS_ONLY, WITHOUT)
    make_galaxies(everything, EVERYTHING, MockConfig(dust_lane_fraction_early=0.25, seed=SEED))
    train(
        replace(
            DENOISERS["gz5"].config,
            root=str(disks_only),
            steps=steps,
            batch_size=16,
            scaling=Scaling(threads_per_worker=1),  # so few galaxies are not worth sharing out
            learning_rate=1.5e-3,
            warmup_steps=40,
            p_question=0.5,  # the lane must be learnt without the disk beside it
            emphasis=("dust_lane:8",),
            sample_every=0,
            resume=True,
        )
    )
    classify(replace(CLASSIFIERS["laptop"].config, root=str(everything), seed=SEED, resume=True))


def make_galaxies(root: Path, labelled: int, mock: MockConfig) -> None:
    make_survey(SurveyConfig(root=str(root), labelled=labelled, tiles=0, mock=mock, resume=True))
    ingest(replace(INGESTS["mock"].config, root=str(root), resume=True))


def written(root: Path, name: str) -> str:
    """Write one of `RECIPES`; returns its file."""
    file = root / f"{name}.yaml"
    file.write_text(RECIPES[name])
    return str(file)


def paint(root: Path, name: str, recipe: str, guidance_scale: float, count: int) -> Location:
    """Paint what a recipe, built in or a file's, asks for; returns where the galaxies stand."""
    output = root / f"{name}-{guidance_scale:g}"
    synthesize(
        SynthesizeConfig(
            root=str(root),
            output=str(output),
            recipe=recipe,
            count=count,
            guidance_scale=guidance_scale,
            precision="bfloat16" if in_bfloat16("auto", "cpu") else "float32",
            seed=SEED,
            resume=True,
        )
    )
    return open_location(str(output))


def read(location: Location) -> pa.Table:
    paths = Manifest.read(location).paths(location, SHARDS)
    return pa.concat_tables(pq.read_table(path, filesystem=location.filesystem) for path in paths)


def shown(root: Path) -> dict[str, int]:
    """Count, in truth and by volunteers' votes, the targets among what the denoiser may have seen."""
    known = pq.read_table(root / "survey/truth/labelled.parquet", columns=["dust_lane_early_type"])
    galaxies = read(open_location(str(root / "galaxies")))
    return {
        "galaxies": len(known),
        "dust_lane_early_types": int(np.sum(known["dust_lane_early_type"].to_numpy())),
        "taken_for_them_by_volunteers": int((truth(galaxies, DUST_LANE_EARLY_TYPE) == 1).sum()),
    }


def on_test(classifier: Location) -> dict[str, Any]:
    report = json.loads((classifier / "metrics.json").read_bytes())["test"]
    counts = {name: report[name] for name in ("true_positives", "false_negatives", "false_positives")}
    return counts | {"completeness": report["completeness"], "purity": report["purity"]}


def accepted(classifier: Location, painted: Location) -> Rate:
    """Return the share of painted galaxies that the classifier takes for its target."""
    decision = Decision.read(classifier)
    model = network.open_published(classifier)
    images = decode_images(read(painted), model.config.size_px)
    scores = network.predict(model, images).targets[:, 0]
    return Rate(int((scores >= decision.threshold).sum()), len(scores))


def picture(painted: dict[str, Location]) -> Figure:
    """Show some galaxies of each kind, unselected."""
    figure = Figure(figsize=(SHOWN, 1.3 * len(painted)), layout="constrained")
    axes = figure.subplots(len(painted), SHOWN)
    for row, (name, place) in zip(axes, painted.items(), strict=True):
        row[0].set_title(f"dust lane {name.replace('_', ' ')}", loc="left", fontsize=9)
        for ax, data in zip(row, read(place)["image"].to_pylist(), strict=False):
            ax.imshow(decode_rgb(data))
            ax.axis("off")
    return figure


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:3]), *map(float, sys.argv[3:4]))
