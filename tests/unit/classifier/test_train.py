"""How a classifier is configured and judged; the training itself is tested on Ray."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from galray.classifier.decision import Decision
from galray.classifier.judging import choose_threshold, curve_figure, judge, validation_metrics
from galray.classifier.network import ClassifierConfig
from galray.classifier.train import ClassifyConfig, check_lineage, refuse_one_sided
from galray.core.errors import ConfigError, EmptyInputError, InputError, LineageError
from galray.core.manifest import publish
from galray.core.storage import open_location


def predictions() -> pa.Table:
    rng = np.random.default_rng(0)
    truth = np.tile([1, 0, 0, 0], 50).astype(np.int8)
    return pa.table(
        {
            "split": ["validation"] * 100 + ["test"] * 100,
            "truth": truth,
            "score": np.clip(0.5 * truth + rng.uniform(0, 0.6, 200), 0, 1).astype(np.float32),
            "morphology": truth.astype(np.int64),
            "morphology_predicted": truth.astype(np.int64),
        }
    )


def test_threshold_comes_from_validation_alone() -> None:
    rows = predictions()
    decision, report = judge(rows, ClassifierConfig(prevalence=(0.1,)))
    assert decision is not None
    spoilt = rows.set_column(2, "score", pa.array(np.r_[rows["score"].to_numpy()[:100], np.zeros(100)]))
    again, report_of_spoilt = judge(spoilt, ClassifierConfig(prevalence=(0.1,)))
    assert again is not None
    assert again.threshold == decision.threshold
    assert report_of_spoilt["validation"]["completeness"] == report["validation"]["completeness"]
    assert report_of_spoilt["test"]["completeness"] < report["test"]["completeness"]
    assert decision.train_prevalence == 0.1
    json.dumps(report)


def test_classes_alone_are_judged_without_a_decision() -> None:
    rows, config = predictions().drop_columns(["truth", "score"]), ClassifierConfig(targets=())
    decision, report = judge(rows, config)
    assert decision is None
    classes = report["validation"]["morphology"]
    assert classes["accuracy"] == 1
    assert classes["accuracy_low"] < 1
    assert classes["in_between_smooth_completeness"] == 1
    assert validation_metrics(rows, config) == {"accuracy": 1.0, "macro_f1": 1.0}
    json.dumps(report)


def test_decision_of_classes_alone_is_missed_by_its_reason(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no rare target.*--target"):
        Decision.read(open_location(str(tmp_path)))


@pytest.mark.parametrize(
    ("targets", "morphology", "message"),
    [([[0], [0]], [0, 1], "0 are known to be dust_lane"), ([[], []], [2, -1], "1 known morphology class")],
)
def test_one_sided_galaxies_are_refused(targets: list, morphology: list, message: str) -> None:
    labels = {"targets": np.array(targets, dtype=np.int8), "morphology": np.array(morphology)}
    config = ClassifyConfig(target="dust_lane_early_type" if targets[0] else "").network()
    with pytest.raises(EmptyInputError, match=message):
        refuse_one_sided(labels, config, "galaxies")


def test_threshold_without_a_positive() -> None:
    assert choose_threshold(np.array([0, 0, -1]), np.array([0.1, 0.9, 0.8])) == 0.5


def test_curve_names_counts() -> None:
    figure = curve_figure({"test": predictions()})
    assert [t.get_text() for t in figure.axes[0].get_legend().get_texts()] == ["test (50)"]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "resnet-smal"}, "resnet-small"),
        ({"target": "dust_lane_early_typ"}, "dust_lane_early_type"),
        ({"augmentation_ratio": -1.0}, "--augmentation-ratio"),
        ({"epochs": 0}, "--epochs"),
    ],
)
def test_bad_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ClassifyConfig(**options)


def chain(root: Path, splits: list[str]) -> ClassifyConfig:
    """Publish galaxies, a denoiser that has seen `splits` of them, and what it painted."""
    parents: dict[str, str] = {}
    for kind in ("galaxies", "denoiser", "synthetic"):
        place = open_location(str(root / kind))
        with publish(place, kind, parents=parents) as publication:
            publication.write("data", kind)
            publication.lineage = {"splits": splits} if kind == "denoiser" else {}
        parents = {place.uri: fingerprint(root / kind)}
    return ClassifyConfig(root=str(root), synthetic="{root}/synthetic")


def fingerprint(folder: Path) -> str:
    from galray.core.manifest import Manifest

    return Manifest.read(open_location(str(folder))).fingerprint


def test_lineage_of_training_galaxies_is_accepted(tmp_path: Path) -> None:
    parents = check_lineage(chain(tmp_path, ["train"]))
    assert set(parents) == {str(tmp_path / "galaxies"), str(tmp_path / "synthetic")}


def test_leak_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(LineageError, match=r"denoiser.* has seen test, validation galaxies"):
        check_lineage(chain(tmp_path, ["train", "validation", "test"]))
