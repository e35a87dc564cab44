"""What is found of a mock survey of 50,000 sources, beside what the reports had predicted.

    python tests/benchmarks/survey_recovery.py FOLDER [labelled] [tiles] [training steps] [painted] [seed]

Labelled mock galaxies train a denoiser and two classifiers, one of real galaxies alone and one of painted
ones too; each scans the same tiles, at the threshold that its validation galaxies chose. The reports predict
candidates, true ones, purity and completeness for the survey's prevalence. Then volunteers, drawn as those of
the labelled galaxies were, classify every source of the tiles: a true one is what they would call one, which
is what thresholds and predictions are about. What is there beside, in lanes too small or faint to be seen,
is counted too. Keeps all runs in FOLDER, and goes on where it was interrupted. Prints one JSON object on the
last line.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
from hardware import hardware

from galray.classifier.detection import average_precision, completeness_purity
from galray.classifier.targets import DUST_LANE_EARLY_TYPE, truth
from galray.classifier.train import PRESETS as CLASSIFIERS
from galray.classifier.train import classify
from galray.core.cluster import connect
from galray.core.intervals import bootstrapped
from galray.core.manifest import Manifest
from galray.core.schema import N_ANSWERS
from galray.core.shards import shard_paths
from galray.core.storage import Location, open_location
from galray.data.ingest import PRESETS as INGESTS
from galray.data.ingest import ingest
from galray.data.mock import volunteers_votes
from galray.data.survey import SurveyConfig, make_survey
from galray.diffusion.synthesize import SynthesizeConfig, synthesize
from galray.diffusion.train import PRESETS as DENOISERS
from galray.diffusion.train import train
from galray.scan.options import ScanConfig
from galray.scan.scan import scan

LANES = 0.01  # share of dust lanes among the early types on the tiles: 0.4% of all sources
ARMS = {"real-only": "", "augmented": "{root}/synthetic"}


def main(
    folder: str,
    labelled: int = 20_000,
    tiles: int = 180,
    steps: int = 3000,
    painted: int = 600,
    seed: int = 0,
) -> None:
    survey = SurveyConfig(
        root=folder,
        labelled=labelled,
        tiles=tiles,
        tile_dust_lane_fraction_early=LANES,
        resume=True,
    )
    survey = replace(survey, mock=replace(survey.mock, seed=seed))
    chance: dict[str, Any] = {"root": folder, "seed": seed, "resume": True}
    with connect():
        make_survey(survey)
        ingest(replace(INGESTS["mock"].config, root=folder, resume=True))
        train(replace(DENOISERS["laptop"].config, steps=steps, **chance))
        synthesize(SynthesizeConfig(count=painted, **chance))
        known = seen_by_volunteers(survey)
        prevalence = float(np.mean(known["truth"].to_numpy() == 1))
        for name, synthetic in ARMS.items():
            classifier = f"{{root}}/classifier-{name}"
            learn = CLASSIFIERS["laptop"].config
            classify(replace(learn, output=classifier, synthetic=synthetic, **chance))
            scan(
                ScanConfig(
                    root=folder,
                    classifier=classifier,
                    output=f"{{root}}/scan-{name}",
                    candidates=f"{{root}}/candidates-{name}",
                    survey_prevalence=prevalence,
                    resume=True,
                )
            )
    root = open_location(folder)
    figures = {
        "hardware": hardware(),
        "seed": seed,
        "labelled": labelled,
        "training_steps": steps,
        "painted": painted,
        "sources": len(known),
        "with_a_lane_seen_or_not": int(np.sum(known["dust_lane_early_type"].to_numpy())),
        "true_to_volunteers": int(np.sum(known["truth"].to_numpy() == 1)),
        **{name: found(root, name, known) for name in ARMS},
    }
    print(json.dumps(figures))


def seen_by_volunteers(survey: SurveyConfig) -> pa.Table:
    """Return each source's `galaxy_id`, and whether volunteers would call it a target: ``truth`` int8."""
    place = survey.location(survey.output) / "truth/tiles.parquet"
    sources = pq.read_table(pa.BufferReader(place.read_bytes()))
    votes = volunteers_votes(survey.tile_mock, sources)
    fractions = pa.FixedSizeListArray.from_arrays(
        votes.weighted_fractions.astype(np.float32).ravel(), N_ANSWERS
    )
    columns = pa.table({"votes": fractions, "classifications": votes.classifications})
    return sources.select(["galaxy_id", "dust_lane_early_type"]).append_column(
        "truth", pa.array(truth(columns, DUST_LANE_EARLY_TYPE))
    )


def found(root: Location, name: str, known: pa.Table) -> dict[str, Any]:
    """Compare what one classifier found with what its report predicted."""
    candidates = Manifest.read(root / f"candidates-{name}", "candidates").lineage
    scans = root / f"scan-{name}"
    shards = pads.dataset(shard_paths(scans, "scores"), filesystem=scans.filesystem)
    scores = shards.to_table(columns=["galaxy_id", "score"]).join(known, "galaxy_id")
    is_true, score = scores["truth"].to_numpy(), scores["score"].to_numpy()
    detection = completeness_purity(is_true, score, candidates["threshold"])
    true, mistaken = detection.true_positives, detection.false_positives
    measured = {
        "candidates": true + mistaken,
        "true": true,
        "completeness": detection.completeness.value,
        "purity": detection.purity.value,
    }
    predicted = candidates["expected"]
    return {
        "measured": detection.as_dict(),
        "average_precision": bootstrapped(average_precision, is_true, score, seed=0).as_dict(),
        "predicted": predicted,
        "within_the_prediction": {
            key: predicted[key]["low"] <= value <= predicted[key]["high"] for key, value in measured.items()
        },
    }


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
