"""What a scan decides before any cluster time is spent, and what it reads back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from galray.classifier import network
from galray.classifier.decision import Decision
from galray.classifier.network import Classifier, ClassifierConfig
from galray.classifier.targets import DUST_LANE_EARLY_TYPE, RING
from galray.core.errors import ConfigError, InputError
from galray.core.manifest import publish, write_parquet
from galray.core.schema import SCORE_SCHEMA
from galray.core.storage import Location, open_location
from galray.data.images import decode_rgb
from galray.scan.aim import Aim, decide
from galray.scan.columns import SOURCE_SCHEMA
from galray.scan.handover import best_scores
from galray.scan.pixels import scanned_schema
from galray.scan.scan import ScanConfig
from galray.scan.scoring import Score

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


def test_scores_are_the_networks_and_rejects_have_none(classifier, images):
    scored = Score(classifier, "ring", 1.0, 0.0, False)(block_of(images, [None, "bad_id", *[None] * 4]))
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


def test_only_images_of_high_scores_are_kept(classifier, images):
    every = Score(classifier, "ring", 0.0, 0.0, False)(block_of(images, [None] * 6))
    scores = every["score"].to_numpy()
    floor = float(np.median(scores))
    some = Score(classifier, "ring", floor, 0.0, False)(block_of(images, [None] * 6))
    assert every["image"].null_count == 0
    assert [image is not None for image in some["image"].to_pylist()] == (scores >= floor).tolist()
    assert decode_rgb(every["image"][0].as_py()).shape == (SIZE_PX, SIZE_PX, 3)


def test_the_random_arm_is_drawn_by_id_alone_and_keeps_its_images(classifier, images):
    many = np.concatenate([images] * 50)
    block = block_of(many, [None] * 300)
    shares = {share: Score(classifier, "ring", 1.0, share, False)(block) for share in (0.2, 0.6)}
    drawn = {share: np.array(table["random_arm"].to_pylist()) for share, table in shares.items()}
    assert abs(drawn[0.2].mean() - 0.2) < 0.08
    assert (drawn[0.2] <= drawn[0.6]).all()
    assert [image is not None for image in shares[0.2]["image"].to_pylist()] == drawn[0.2].tolist()
    later = Score(classifier, "ring", 1.0, 0.2, False)(block.slice(100))
    assert later["random_arm"].to_pylist() == drawn[0.2][100:].tolist()


def test_a_block_of_rejects_alone(classifier, images):
    scored = Score(classifier, "ring", 0.0, 0.0, False)(block_of(images, ["bad_id"] * 6))
    assert scored["score"].null_count == 6


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
