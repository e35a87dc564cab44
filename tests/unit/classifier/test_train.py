"""How a classifier is configured and judged; the training itself is tested on Ray."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from galray.classifier.approval import Approver
from galray.classifier.decision import Decision
from galray.classifier.examples import (
    drawing,
    measure_balance,
    refuse_one_sided,
    with_architecture,
)
from galray.classifier.figures import curve_figure
from galray.classifier.judging import choose_threshold, figures, judge, validation_metrics
from galray.classifier.labels import PrepareGalaxies
from galray.classifier.network import Classifier, ClassifierConfig, load, save
from galray.classifier.train import ClassifyConfig, check_lineage
from galray.core.cells import from_cells
from galray.core.cluster import Scaling
from galray.core.errors import ConfigError, EmptyInputError, InputError, LineageError
from galray.core.manifest import publish
from galray.core.schema import N_ANSWERS
from galray.core.storage import open_location
from galray.data.images import encode_png


def predictions() -> pa.Table:
    rng = np.random.default_rng(0)
    truth = np.tile([1, 0, 0, 0], 50).astype(np.int8)
    probability = np.full((200, 5), 0.05, np.float32)
    probability[np.arange(200), truth] = 0.8
    return pa.table(
        {
            "split": ["validation"] * 100 + ["test"] * 100,
            "truth": truth,
            "score": np.clip(0.5 * truth + rng.uniform(0, 0.6, 200), 0, 1).astype(np.float32),
            "morphology": truth.astype(np.int64),
            "morphology_predicted": truth.astype(np.int64),
            "morphology_probability": pa.FixedSizeListArray.from_arrays(probability.ravel(), 5),
        }
    )


def classes_alone() -> ClassifierConfig:
    return ClassifierConfig(targets=(), class_shares=(0.2,) * 5)


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
    assert decision.temperature == again.temperature != 1
    json.dumps(report)


def test_what_eight_symmetries_say_is_judged_beside() -> None:
    rows = predictions()
    uncertain = np.full((200, 5), 0.2, np.float32)
    uncertain[np.arange(200), rows["morphology"].to_numpy()] += np.tile([0.1, -0.1], 100)
    rows = rows.append_column("morphology_turned", pa.FixedSizeListArray.from_arrays(uncertain.ravel(), 5))
    _, report = judge(rows, ClassifierConfig(prevalence=(0.1,)))
    assert report["test"]["morphology"]["accuracy"] == 1
    assert report["test"]["morphology_turned"]["accuracy"] == 0.5
    _, plain = judge(rows.drop_columns("morphology_turned"), ClassifierConfig(prevalence=(0.1,)))
    assert "morphology_turned" not in plain["test"]


def test_a_rare_class_is_named_more_readily_at_halfway_shares() -> None:
    """One in four galaxies is of it: at halfway shares its probability counts sqrt(3) times as much."""
    rows = predictions().drop_columns(["truth", "score", "morphology_probability", "morphology_predicted"])
    probability = np.where(rows["morphology"].to_numpy()[:, None] == 1, [[0.6, 0.37]], [[0.65, 0.32]])
    probability = np.hstack([probability, np.full((200, 3), 0.01)]).astype(np.float32)
    rows = rows.append_column("morphology_predicted", pa.array(np.zeros(200, np.int64)))
    cells = pa.FixedSizeListArray.from_arrays(probability.ravel(), 5)
    _, report = judge(rows.append_column("morphology_probability", cells), ClassifierConfig(targets=()))
    for split in ("validation", "test"):
        assert report[split]["morphology"]["accuracy"] == 0.75
        assert report[split]["morphology_halfway"]["accuracy"] == 1


def test_classes_alone_are_judged_without_a_decision() -> None:
    rows, config = predictions().drop_columns(["truth", "score"]), classes_alone()
    decision, report = judge(rows, config)
    assert decision is None
    classes = report["validation"]["morphology"]
    assert classes["accuracy"] == 1
    assert classes["accuracy_low"] < 1
    assert classes["in_between_smooth_completeness"] == 1
    assert classes["macro_f1_interval"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert classes["in_between_smooth"]["completeness_at_purity_0.9"]["value"] == 1
    calibration = report["test"]["calibration"]["classes"]
    assert 0.03 < calibration["ece_before"]["value"] < 0.08  # 0.84 for the rare class, 0.98 for the other
    assert calibration["ece_after"]["value"] < 0.001  # all are right, so it may be sure
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


def test_figures_are_drawn_of_both_kinds_of_classifier() -> None:
    target = figures(predictions(), ClassifierConfig(prevalence=(0.1,)))
    classes = figures(predictions().drop_columns(["truth", "score"]), classes_alone())
    assert set(target) == {"confusion.png", "class_curves.png", "reliability.png", "curves.png"}
    assert set(classes) == set(target) - {"curves.png"}
    labels = [t.get_text() for t in target["confusion.png"].axes[0].texts]
    assert "1.00\n(75)" in labels


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
        ({"validate_every": 0}, "--validate-every"),
        ({"synthetic": "s", "augmentation_ratio": 9.0}, "real galaxies 0.1 of a batch, less than"),
        ({"approved_by": "reference"}, "--approved-by"),
        ({"warmup": 1.5}, "--warmup"),
        ({"scaling": Scaling(shard=True)}, "--scaling.shard"),
        ({"backbone": "vit-tiny", "size_px": 60}, "patches of 8 px"),
        ({"pretrained": "resnet", "start_from": "classifier"}, "not both"),
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


def starting(root: Path, splits: list[str], **options: Any) -> ClassifyConfig:
    """Publish galaxies and a classifier to start from, which has seen `splits` of them."""
    config = chain(root, ["train"])
    place = config.location("former")
    settings = ClassifierConfig("vit-tiny", 32, prevalence=(0.1,), class_shares=(0.2,) * 5)
    with publish(place, "classifier") as publication:
        save(Classifier(settings), root / "saved")
        publication.add_folder(root / "saved")
        publication.lineage = {"splits": splits}
    return ClassifyConfig(root=str(root), size_px=32, start_from=place.uri, **options)


def test_a_start_is_a_published_classifiers_backbone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = starting(tmp_path, ["train"], target="ring")
    assert set(check_lineage(config)) == {str(tmp_path / "galaxies"), config.location("former").uri}
    settings = with_architecture(config)
    assert (settings.backbone, settings.targets[0].name) == ("pretrained", "ring")
    former, own = load(tmp_path / "former"), Classifier(settings)
    backbone = config.starting_backbone()
    assert backbone is not None
    own.backbone.load_state_dict(backbone.state_dict())
    images = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    assert torch.equal(own.eval().features(images), former.features(images))
    assert ClassifyConfig().starting_backbone() is None


def test_a_start_that_cannot_be_used_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = starting(tmp_path, ["train", "test"])
    with pytest.raises(LineageError, match=r"former \(classifier\) has seen test galaxies"):
        check_lineage(config)
    with pytest.raises(ConfigError, match=r"--start-from .*former does not take images of 64 px"):
        replace(config, size_px=64).starting_backbone()


def test_a_mixture_is_measured_as_it_comes_in_batches() -> None:
    config = ClassifyConfig(synthetic="s", augmentation_ratio=0.5, batch_size=8, balance="none")
    real = {"morphology": np.zeros(90, int), "targets": np.zeros((90, 1), np.int8)}
    painted = {"morphology": np.ones(9, int), "targets": np.ones((9, 1), np.int8)}
    shares = measure_balance(config, config.network(), real, painted, None).assumed
    assert shares.prevalence[0] == pytest.approx(1 / 3, abs=0.01)
    assert shares.classes[1] == pytest.approx(1 / 3, abs=0.01)
    real["targets"][:3] = 1
    draw = drawing(replace(config, balance="class-balanced"), real)
    shares = measure_balance(config, config.network(), real, painted, draw).assumed
    assert shares.prevalence[0] == pytest.approx(2 / 3, abs=0.01)


def test_galaxies_come_once_an_epoch_or_are_drawn_anew() -> None:
    labels = {"morphology": np.array([0, 1, 1, 1]), "targets": np.zeros((4, 0), np.int8)}
    classes = ClassifyConfig(target="", balance="none")
    assert drawing(classes, labels) is None
    anew = drawing(replace(classes, replacement=True), labels)
    assert anew
    np.testing.assert_array_equal(anew(labels), [1, 1, 1, 1])
    balanced = drawing(replace(classes, replacement=True, balance="class-balanced"), labels)
    assert balanced
    np.testing.assert_allclose(balanced(labels), [1, 1 / 3, 1 / 3, 1 / 3])


def galaxies(labels: list[str | None]) -> pa.Table:
    """Return grey galaxies with labels and no votes."""
    nothing = np.full(len(labels) * N_ANSWERS, np.nan, np.float32)
    grey = [encode_png(np.full((32, 32, 3), 40 * i, np.uint8)) for i in range(len(labels))]
    return pa.table(
        {
            "galaxy_id": range(len(labels)),
            "votes": pa.FixedSizeListArray.from_arrays(pa.array(nothing), N_ANSWERS),
            "label": pa.array(labels, pa.string()),
            "image": grey,
        }
    )


def tiny() -> ClassifierConfig:
    return ClassifierConfig("resnet-tiny", 32)


def morphology_of(prepared: pa.Table) -> list[int]:
    return from_cells(prepared["morphology"]).view(np.int64).ravel().tolist()


def test_nothing_is_learnt_of_galaxies_of_which_nothing_is_known() -> None:
    rows = galaxies(["spiral", None, "edge_on"])
    assert morphology_of(PrepareGalaxies(tiny())(rows)) == [4, -1, 3]
    kept = PrepareGalaxies(tiny(), only_known=True)(rows)
    assert kept["galaxy_id"].to_pylist() == [0, 2]
    assert from_cells(kept["image"])[:, 0].tolist() == [0, 80]


def teach(place: Path, bias: list[float], target_bias: float) -> None:
    """Publish a classifier that says the same of every galaxy."""
    model = Classifier(tiny())
    for head, value in ((model.morphology_head, bias), (model.target_head, [target_bias])):
        assert head is not None
        head.weight.data.zero_()
        head.bias.data = torch.tensor(value)
    with publish(open_location(str(place)), "classifier") as publication:
        save(model, place / "new")
        publication.add_folder(place / "new")


def test_an_approver_leaves_out_what_it_takes_for_something_else(tmp_path: Path) -> None:
    teach(tmp_path / "spirals", [0.0, 0.0, 0.0, 0.0, 1.0], -1.0)
    approver = Approver(open_location(str(tmp_path / "spirals")))
    rows = galaxies(["spiral", "edge_on", "dust_lane_early_type", "not_dust_lane_early_type", None])
    assert approver(rows, PrepareGalaxies(tiny()).labels(rows))["morphology"].tolist() == [4, -1, -1, -1, -1]
    approved = PrepareGalaxies(tiny(), only_known=True, approver=approver)(rows)
    assert approved["galaxy_id"].to_pylist() == [0, 3]
    assert len(PrepareGalaxies(tiny(), only_known=True, approver=approver)(rows[:0])) == 0
    with pytest.raises(ConfigError, match=r"--approved-by .*dust_lane_early_type.*ring"):
        approver.check_tells(ClassifyConfig(target="ring").network())


def test_what_an_approver_refuses_teaches_no_votes_either(tmp_path: Path) -> None:
    teach(tmp_path / "spirals", [0.0, 0.0, 0.0, 0.0, 1.0], -1.0)
    rows = galaxies(["spiral", "edge_on"])
    told_by_volunteers = {
        "votes": np.full((2, 37), 0.5, np.float32),
        "volunteers": np.ones((2, 11), np.float32),
    }
    labels = PrepareGalaxies(tiny()).labels(rows) | told_by_volunteers
    told = Approver(open_location(str(tmp_path / "spirals")))(rows, labels)
    assert told["volunteers"].any(axis=1).tolist() == [True, False]
    assert {name: values.dtype for name, values in told.items()} == {k: v.dtype for k, v in labels.items()}
