"""What a scan decides before any cluster time is spent, and what it reads back."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from galray.classifier import network
from galray.classifier.decision import Decision
from galray.classifier.metrics import shift_prior
from galray.classifier.network import Classifier, ClassifierConfig
from galray.classifier.targets import DUST_LANE_EARLY_TYPE, RING
from galray.core.errors import ConfigError, InputError
from galray.core.manifest import publish, write_parquet
from galray.core.schema import SCORE_SCHEMA
from galray.core.storage import Location, open_location
from galray.data.images import decode_rgb
from galray.scan import engine
from galray.scan.aim import Aim, decide
from galray.scan.columns import SOURCE_SCHEMA, sources_table
from galray.scan.engine import Engine, check_agreement
from galray.scan.handover import best_scores
from galray.scan.options import ScanConfig
from galray.scan.pixels import scanned_schema
from galray.scan.scoring import Score, ScoreUnit, Scoring, UnitImages, symmetries

SIZE_PX = 32
TUNED = Decision("dust_lane_early_type", 0.7, 0.1)
SETTINGS = ClassifierConfig(
    "resnet-tiny", SIZE_PX, targets=(DUST_LANE_EARLY_TYPE, RING), prevalence=(0.1, 0.2)
)


VALIDATION = {  # the highest score is no target
    "split": ["validation"] * 12,
    "truth": np.array([1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, -1], np.int8),
    "score": np.array([0.95, 0.9, 0.6, 0.3, 0.99, 0.5, 0.2, 0.2, 0.1, 0.1, 0.1, 0.97], np.float32),
}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"select": "flux_r >"}, "cannot be read"),
        ({"select": "import os"}, "cannot be read"),
        ({"select": "flux_r > 1", "galaxies": "x"}, "--select"),
        ({"random_share": 1.0}, "--random-share"),
        ({"aim": Aim(purity=0.5)}, "--survey-prevalence"),
        ({"cutout_px": 64, "cutout_radii": 8.0}, "not both"),
        ({"keep_image_score": -0.1}, "--keep-image-score"),
        ({"aim": Aim(threshold=0.5), "keep_image_score": 0.6}, "without their cutouts"),
        ({"survey_prevalence": 0.0}, "--survey-prevalence"),
        ({"batch_size": 0}, "--batch-size"),
        ({"rows_per_task": 0}, "--rows-per-task"),
        ({"gpus": -1}, "--gpus"),
        ({"engine": "openvin"}, "did you mean 'openvino'"),
        ({"engine": "openvino", "gpus": 1}, "runs on CPUs"),
        ({"ensemble": ("a", "a")}, "twice"),
        ({"saturation": 0.0}, "--saturation"),
        ({"blend_radius_arcsec": -1.0}, "--blend-radius-arcsec"),
    ],
)
def test_contradictions_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        ScanConfig(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 1.2}, "--aim.threshold 1.2"),
        ({"purity": 0.0}, "--aim.purity"),
        ({"completeness": 1.5}, "--aim.completeness"),
        ({"number": 0}, "--aim.number"),
        ({"purity": 0.5, "number": 10}, "--aim.purity and --aim.number contradict"),
    ],
)
def test_one_aim_that_can_be(options, message):
    with pytest.raises(ConfigError, match=message):
        Aim(**options)


def decided(classifier, aim, target="", prevalence=None):
    return decide(aim, target, prevalence, TUNED, SETTINGS, classifier)


def test_the_classifiers_decision_holds_unless_told_otherwise(classifier):
    assert decided(classifier, Aim()) == TUNED
    assert decided(classifier, Aim(threshold=0.9)).threshold == 0.9
    assert decided(classifier, Aim(threshold=0.0)).threshold == 0.0
    assert decided(classifier, Aim(number=5)).threshold == 0.0


def test_another_target_needs_its_own_threshold(classifier):
    assert decided(classifier, Aim(threshold=0.4), "ring") == Decision("ring", 0.4, 0.2)
    with pytest.raises(ConfigError, match=r"'ring' needs an --aim\.threshold"):
        decided(classifier, Aim(completeness=0.5), "ring")
    with pytest.raises(ConfigError, match="did you mean 'ring'"):
        decided(classifier, Aim(), "rings")


def test_the_threshold_for_a_completeness_finds_so_many_in_validation(classifier):
    threshold = decided(classifier, Aim(completeness=0.75)).threshold
    truth, score = VALIDATION["truth"], VALIDATION["score"]
    assert np.mean(score[truth == 1] >= threshold) == 0.75


def test_the_threshold_for_a_purity_is_the_lowest_so_pure_at_the_surveys_prevalence(classifier):
    truth, score = VALIDATION["truth"], VALIDATION["score"]

    def purity(threshold, prevalence):
        found = np.mean(score[truth == 1] >= threshold) * prevalence
        return found / (found + np.mean(score[truth == 0] >= threshold) * (1 - prevalence))

    common, rare = (decided(classifier, Aim(purity=0.55), prevalence=p).threshold for p in (0.5, 0.2))
    assert rare > common
    assert purity(common, 0.5) >= 0.55 > max(purity(t, 0.5) for t in score[score < common])
    assert purity(rare, 0.2) >= 0.55


def test_a_purity_that_no_threshold_reaches(classifier):
    with pytest.raises(InputError, match=r"pure at a prevalence of 1e-06.*Lower --aim\.purity"):
        decided(classifier, Aim(purity=1.0), prevalence=1e-6)


@pytest.mark.parametrize("text", ["not JSON", "[]", '{"target": "ring"}'])
def test_a_decision_that_is_none(tmp_path, text):
    (tmp_path / "decision.json").write_text(text)
    with pytest.raises(InputError, match=r"decision.json .*classify"):
        Decision.read(open_location(str(tmp_path)))


@pytest.fixture
def classifier(tmp_path: Path) -> Location:
    location = open_location(str(tmp_path / "classifier"))
    torch.manual_seed(0)
    with publish(location, "classifier") as publication:
        network.save(Classifier(SETTINGS), tmp_path / "model")
        publication.add_folder(tmp_path / "model")
        publication.write("decision.json", json.dumps(vars(TUNED)))
        publication.add(write_parquet(location, "predictions.parquet", pa.table(VALIDATION)))
    return location


def block_of(images: np.ndarray, reasons: list[str | None]) -> pa.Table:
    count = len(images)
    columns = {name: [None] * count for name in SOURCE_SCHEMA.names}
    columns |= {"galaxy_id": list(range(count)), "flags": [0] * count, "reason": reasons}
    columns["pixels"] = [image.tobytes() for image in images]
    return pa.table(columns, schema=scanned_schema(SIZE_PX))


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 255, (6, SIZE_PX, SIZE_PX, 3), dtype=np.uint8)


def score(classifier: Location | tuple[Location, ...], block: pa.Table, **options: Any) -> pa.Table:
    classifiers = classifier if isinstance(classifier, tuple) else (classifier,)
    return Score(Scoring(classifiers, "ring", **options))(block)


def test_scores_are_the_networks_and_rejects_have_none(classifier, images):
    scored = score(classifier, block_of(images, [None, "bad_id", *[None] * 4]))
    said = network.predict(network.load(classifier.path), images)
    good = [0, 2, 3, 4, 5]
    assert scored["score"].to_pylist()[1] is None
    np.testing.assert_allclose(
        np.array(scored["score"].to_pylist(), float)[good], said.targets[good, 1], atol=1e-6
    )
    np.testing.assert_allclose(
        np.array(scored["early_type"].to_pylist(), float)[good],
        said.morphology[good, 0] + said.morphology[good, 1],
        atol=1e-6,
    )
    assert "pixels" not in scored.column_names
    assert scored["score_sd"].null_count == 6


def test_only_images_of_high_scores_are_kept(classifier, images):
    every = score(classifier, block_of(images, [None] * 6), keep_image_score=0.0)
    scores = every["score"].to_numpy()
    floor = float(np.median(scores))
    some = score(classifier, block_of(images, [None] * 6), keep_image_score=floor)
    assert every["image"].null_count == 0
    assert [image is not None for image in some["image"].to_pylist()] == (scores >= floor).tolist()
    assert decode_rgb(every["image"][0].as_py()).shape == (SIZE_PX, SIZE_PX, 3)


def test_the_random_arm_is_drawn_by_id_alone_and_keeps_its_images(classifier, images):
    many = np.concatenate([images] * 50)
    block = block_of(many, [None] * 300)
    shares = {share: score(classifier, block, random_share=share) for share in (0.2, 0.6)}
    drawn = {share: np.array(table["random_arm"].to_pylist()) for share, table in shares.items()}
    assert abs(drawn[0.2].mean() - 0.2) < 0.08
    assert (drawn[0.2] <= drawn[0.6]).all()
    assert [image is not None for image in shares[0.2]["image"].to_pylist()] == drawn[0.2].tolist()
    later = score(classifier, block.slice(100), random_share=0.2)
    assert later["random_arm"].to_pylist() == drawn[0.2][100:].tolist()


def test_a_block_of_rejects_alone(classifier, images):
    scored = score(classifier, block_of(images, ["bad_id"] * 6), keep_image_score=0.0)
    assert scored["score"].null_count == 6


def test_turns_score_the_eight_symmetries(classifier, images):
    turned = score(classifier, block_of(images, [None] * 6), turns=True)
    model = network.load(classifier.path)
    seen = [np.rot90(m, k, axes=(1, 2)).copy() for m in (images, images[:, :, ::-1]) for k in range(4)]
    said = np.stack([network.predict(model, turn).targets[:, 1] for turn in seen])
    np.testing.assert_allclose(turned["score"].to_numpy(), said.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(turned["score_sd"].to_numpy(), said.std(axis=0), atol=1e-6)
    assert (turned["score_sd"].to_numpy() > 1e-6).any()
    again = score(classifier, block_of(seen[3], [None] * 6), turns=True)
    np.testing.assert_allclose(again["score"].to_numpy(), turned["score"].to_numpy(), atol=1e-6)


def test_the_symmetries_are_eight_and_undo_one_another():
    image = np.arange(48, dtype=np.uint8).reshape(1, 4, 4, 3)
    assert len({turn.tobytes() for turn in symmetries(image)}) == 8


def test_an_ensemble_averages_at_the_first_ones_prevalence(classifier, images, tmp_path):
    torch.manual_seed(7)
    other = Classifier(replace(SETTINGS, prevalence=(0.1, 0.5)))
    second = open_location(str(tmp_path / "second"))
    with publish(second, "classifier") as publication:
        network.save(other, tmp_path / "other")
        publication.add_folder(tmp_path / "other")
    both = score((classifier, second), block_of(images, [None] * 6))
    first = network.predict(network.load(classifier.path), images).targets[:, 1]
    theirs = shift_prior(network.predict(other, images).targets[:, 1], 0.5, 0.2)
    np.testing.assert_allclose(both["score"].to_numpy(), (first + theirs) / 2, atol=1e-6)
    np.testing.assert_allclose(both["score_sd"].to_numpy(), np.abs(first - theirs) / 2, atol=1e-6)


def test_the_reference_engine_needs_no_check_and_others_tell_how_far_they_are(classifier):
    assert check_agreement((classifier,), Engine()) == {"name": "torch", "bfloat16": False}
    told = check_agreement((classifier,), Engine(bfloat16=True))
    assert 0 < told["largest_difference"] < told["tolerance"] == 0.02


def test_an_engine_that_differs_is_refused(classifier, monkeypatch):
    monkeypatch.setattr(engine, "TOLERANCE_BFLOAT16", 1e-9)
    with pytest.raises(ConfigError, match=r"differs from torch in float32 by .* where 1e-09 is tolerated"):
        check_agreement((classifier,), Engine(bfloat16=True))


@pytest.mark.skipif(find_spec("openvino") is not None, reason="OpenVINO is installed")
def test_an_engine_that_is_not_installed_is_named(classifier):
    with pytest.raises(ConfigError, match=r"pip install 'galray\[openvino\]'"):
        check_agreement((classifier,), Engine("openvino"))


@pytest.mark.parametrize("bfloat16", [False, True])
def test_openvino_agrees_with_torch(classifier, images, bfloat16):
    pytest.importorskip("openvino")
    block, runs_on = block_of(images, [None] * 6), Engine("openvino", bfloat16)
    assert check_agreement((classifier,), runs_on)["largest_difference"] <= runs_on.tolerance
    expected, found = score(classifier, block), score(classifier, block, engine=runs_on)
    np.testing.assert_allclose(
        found["score"].to_numpy(), expected["score"].to_numpy(), atol=runs_on.tolerance
    )


def test_the_blocks_of_a_unit_are_the_same_to_a_process_with_a_gpu(classifier, tmp_path, images):
    location = open_location(str(tmp_path))
    columns = {"galaxy_id": list(range(6)), "ra": [1.0] * 6, "dec": [1.0] * 6}
    write_parquet(location, "shards/a.parquet", sources_table(columns, 6))
    made = UnitImages(location, None, lambda rows: block_of(images[: len(rows)], [None] * len(rows)), 4)
    doing, unit = ScoreUnit(made, Scoring((classifier,), "ring")), {"path": "shards/a.parquet"}
    here = doing(unit)
    assert doing(made(unit)).equals(here)
    assert here["score"].to_pylist()[:2] == pytest.approx(here["score"].to_pylist()[4:])


@pytest.fixture
def scores(tmp_path: Path) -> Location:
    location = open_location(str(tmp_path / "scan"))
    with publish(location, "scores") as publication:
        for part in range(3):
            rows = [
                {"galaxy_id": k, "score": k / 30, "flags": 0, "random_arm": k == 2}
                for k in range(10 * part, 10 * part + 10)
            ]
            table = pa.Table.from_pylist(rows, schema=SCORE_SCHEMA)
            publication.add(write_parquet(location, f"shards/part-{part}.parquet", table))
    return location


def test_the_best_and_the_random_arm_are_read_back_from_all_shards(scores):
    best, above = best_scores(scores, 0.5, 100)
    assert sorted(best["galaxy_id"].to_pylist()) == [2, *range(15, 30)]
    assert above == 15
    best, above = best_scores(scores, 0.5, 4)
    assert sorted(best["galaxy_id"].to_pylist()) == [2, 26, 27, 28, 29]
    assert above == 15


def test_a_threshold_that_nothing_reaches(scores):
    best, above = best_scores(scores, 0.99, 4)
    assert (best["galaxy_id"].to_pylist(), above) == ([2], 0)
    assert best.schema.names == SCORE_SCHEMA.names


def test_files_the_manifest_does_not_name_are_not_read(scores):
    row = {"galaxy_id": 99, "score": 1.0, "flags": 0, "random_arm": False}
    stray = pa.Table.from_pylist([row], schema=SCORE_SCHEMA)
    pq.write_table(stray, f"{scores.path}/shards/stray.parquet")
    assert best_scores(scores, 0.5, 100)[1] == 15
