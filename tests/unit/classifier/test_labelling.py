"""Labels that a classifier gives, and to which galaxies."""

import numpy as np
import pyarrow as pa
import pytest

from galray.classifier.labelling import GiveLabels, LabelConfig, confident, rightness
from galray.classifier.network import ClassifierConfig, Probabilities
from galray.classifier.targets import find_target
from galray.core.errors import ConfigError
from galray.core.intervals import Rate
from galray.core.schema import ANSWER_INDEX, N_ANSWERS
from galray.core.storage import open_location
from galray.data.images import encode_png
from tests.unit.classifier.test_train import teach

CLASSES = ClassifierConfig("resnet-tiny", 32, targets=())


def galaxies() -> pa.Table:
    """Return one with a label, one with a single vote, and two of which nothing is known."""
    votes = np.full((4, N_ANSWERS), np.nan, np.float32)
    votes[1, ANSWER_INDEX["smooth"]] = 0.5
    cells = pa.FixedSizeListArray.from_arrays(pa.array(votes.ravel()), N_ANSWERS)
    image = encode_png(np.zeros((32, 32, 3), np.uint8))
    labels = pa.array(["spiral", None, None, None], pa.string())
    return pa.table({"galaxy_id": [1, 2, 3, 4], "votes": cells, "label": labels, "image": [image] * 4})


def test_only_galaxies_of_which_nothing_is_known_get_a_label(tmp_path) -> None:
    teach(tmp_path / "sure", [0.0, 9.0, 0.0, 0.0, 0.0], -9.0)
    given = GiveLabels.of(open_location(str(tmp_path / "sure")), 0.9)(galaxies())
    assert given["own"].to_pylist() == [True, True, False, False]
    assert given["label"].to_pylist() == [None, None, *["not_dust_lane_early_type"] * 2]


def test_one_that_is_not_sure_gives_none(tmp_path) -> None:
    teach(tmp_path / "unsure", [0.0, 1.0, 0.0, 0.0, 0.0], 1.0)
    given = GiveLabels.of(open_location(str(tmp_path / "unsure")), 0.9)(galaxies())
    assert given["label"].null_count == 4


def test_a_rare_target_or_its_negation_or_else_a_class() -> None:
    morphology = np.array([[0.97, 0.03, 0, 0, 0], [0.5, 0.5, 0, 0, 0], [0, 0, 0, 0.04, 0.96]], np.float32)
    said = Probabilities(morphology, np.array([[0.99], [0.5], [0.01]], np.float32))
    assert confident(said, CLASSES, 0.95).tolist() == ["completely_round_smooth", None, "spiral"]
    target = ClassifierConfig("resnet-tiny", 32, targets=(find_target("ring"),))
    assert confident(said, target, 0.95).tolist() == ["ring", None, "not_ring"]


def test_half_a_probability_is_no_confidence() -> None:
    with pytest.raises(ConfigError, match="--confidence"):
        LabelConfig(confidence=0.5)


def test_how_often_it_is_right_where_it_is_sure() -> None:
    probability = np.array(
        [[0.97, 0.03, 0, 0, 0], [0.96, 0.04, 0, 0, 0], [0.5, 0.5, 0, 0, 0], [0.99, 0.01, 0, 0, 0]]
    )
    predictions = pa.table(
        {
            "split": ["validation", "validation", "validation", "test"],
            "morphology": [0, 1, 0, 0],
            "morphology_probability": pa.FixedSizeListArray.from_arrays(pa.array(probability.ravel()), 5),
        }
    )
    assert rightness(predictions, CLASSES, 0.95) == Rate(1, 2)
    of_target = predictions.append_column("score", pa.array([0.99, 0.99, 0.01, 0.5]))
    of_target = of_target.append_column("truth", pa.array([1, 0, -1, 1]))
    target = ClassifierConfig("resnet-tiny", 32, targets=(find_target("ring"),))
    assert rightness(of_target, target, 0.95) == Rate(1, 2)
