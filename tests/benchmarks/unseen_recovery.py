"""Can a classifier find what nobody has labelled, or few have, having learnt it from painted galaxies?

    python tests/benchmarks/unseen_recovery.py FOLDER [steps] [guidance scale]

Runs `extrapolation.py` in FOLDER first: a denoiser that has seen dust lanes in disks alone. It paints early
types with a lane, and, lest what is painted be told from what is real, early types and disks without one
and disks with one. A classifier learns from the disks-only survey and from these. It is compared with the
best that can be done without painting: a classifier of the same galaxies that learns the volunteers' votes,
whose score is the product of its answers smooth, odd and dust lane; and with what labels would have given:
one that learns from another survey where a quarter of the early types have a lane.

Then a few early types of the disks-only survey are given a lane, of which volunteers see some 10, and some 40
(`FEW`): what does a classifier of these find, without painted galaxies and with the same ones as before?

All score the same 20,000 galaxies of a third survey, where one in a hundred early types has a lane. Prints
one JSON object on the last line.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as pads
from extrapolation import DISKS_ONLY, SEED, WITHOUT, extrapolate, make_galaxies, paint, read
from hardware import hardware

from galray.classifier import network
from galray.classifier.detection import average_precision, completeness_at_purity
from galray.classifier.network import Probabilities
from galray.classifier.targets import DUST_LANE_EARLY_TYPE, truth
from galray.classifier.train import PRESETS as CLASSIFIERS
from galray.classifier.train import classify
from galray.core.cluster import connect
from galray.core.intervals import bootstrapped
from galray.core.schema import ANSWER_INDEX
from galray.core.storage import open_location
from galray.data.batches import decode_images

SURVEYED, SURVEY_SEED, LANES = 20_000, 3, 0.01
FEW = (0.0035, 0.014)  # shares of early types with a lane
PURITY = 0.5
PAINTED = 1200
RECIPE = "dust_lane_early_type_in_turn"
Score = Callable[[Probabilities], np.ndarray]


def main(folder: str, steps: int = 12_000, guidance_scale: float = 4.0) -> None:
    disks_only, everything, survey = (Path(folder, name) for name in ("disks-only", "everything", "survey"))
    few = {share: Path(folder, f"lanes-{share:g}") for share in FEW}
    learn = replace(CLASSIFIERS["laptop"].config, seed=SEED, resume=True)
    on_disks = replace(learn, root=str(disks_only))
    with connect():
        extrapolate(folder, steps)
        make_galaxies(survey, SURVEYED, replace(WITHOUT, dust_lane_fraction_early=LANES, seed=SURVEY_SEED))
        synthetic = paint(disks_only, "unseen", RECIPE, guidance_scale, PAINTED).uri
        classify(replace(on_disks, output="{root}/classifier-votes", target="", votes=True))
        classify(replace(on_disks, output="{root}/classifier-painted", synthetic=synthetic))
        for share, root in few.items():
            make_galaxies(root, DISKS_ONLY, replace(WITHOUT, dust_lane_fraction_early=share))
            classify(replace(learn, root=str(root), output="{root}/classifier-real"))
            classify(replace(learn, root=str(root), output="{root}/classifier-painted", synthetic=synthetic))
    galaxies = read(open_location(str(survey / "galaxies")))
    is_true = truth(galaxies, DUST_LANE_EARLY_TYPE)
    images = decode_images(galaxies, learn.size_px)
    judged = partial(found, images=images, is_true=is_true)
    figures = {
        "hardware": hardware(),
        "steps": steps,
        "guidance_scale": guidance_scale,
        "seeds": {"survey": SURVEY_SEED, "classifiers": SEED, "painting": SEED, "denoiser": 0},
        "painted": PAINTED,
        "surveyed": len(galaxies),
        "true_to_volunteers": int((is_true == 1).sum()),
        "none_labelled": {
            "votes_alone": judged(disks_only / "classifier-votes", score_of=product_of_votes),
            "painted_galaxies": judged(disks_only / "classifier-painted"),
        },
        "few_labelled": [
            {
                "labelled": learnt_from(root),
                "real_galaxies": judged(root / "classifier-real"),
                "painted_galaxies": judged(root / "classifier-painted"),
            }
            for root in few.values()
        ],
        "many_labelled": {
            "labelled": learnt_from(everything),
            "real_galaxies": judged(everything / "classifier"),
        },
    }
    print(json.dumps(figures))


def learnt_from(root: Path) -> int:
    """Count the training galaxies that are dust-lane early types to volunteers."""
    galaxies = read(open_location(str(root / "galaxies")))
    training = galaxies.filter(pads.field("split") == "train")
    return int((truth(training, DUST_LANE_EARLY_TYPE) == 1).sum())


def of_target(probabilities: Probabilities) -> np.ndarray:
    return probabilities.targets[:, 0]


def product_of_votes(probabilities: Probabilities) -> np.ndarray:
    """Return how likely volunteers answer smooth, odd and dust lane, were the answers independent."""
    assert probabilities.votes is not None
    return np.prod([probabilities.votes[:, ANSWER_INDEX[a]] for a in ("smooth", "odd", "dust_lane")], axis=0)


def found(
    place: Path, images: np.ndarray, is_true: np.ndarray, score_of: Score = of_target
) -> dict[str, Any]:
    """Score all galaxies with one classifier, and judge how it ranks them."""
    model = network.open_published(open_location(str(place)))
    batches = np.array_split(images, max(len(images) // 256, 1))
    score = np.concatenate([score_of(network.predict(model, batch)) for batch in batches])
    detection = completeness_at_purity(is_true, score, PURITY)
    return {
        "average_precision": bootstrapped(average_precision, is_true, score, seed=0).as_dict(),
        f"at_purity_{PURITY:g}": detection.as_dict(),
    }


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:3]), *map(float, sys.argv[3:4]))
