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
from galray.scan.pixels import scanned_schema
from galray.scan.scan import ScanConfig, best_scores, decide
from galray.scan.scoring import Score

SIZE_PX = 32
TUNED = Decision("dust_lane_early_type", 0.7, 0.1)
SETTINGS = ClassifierConfig(
    "resnet-tiny", SIZE_PX, targets=(DUST_LANE_EARLY_TYPE, RING), prevalence=(0.1, 0.2)
)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 1.2}, "--threshold 1.2"),
        ({"keep_image_score": -0.1}, "--keep-image-score"),
        ({"threshold": 0.5, "keep_image_score": 0.6}, "without their cutouts"),
        ({"survey_prevalence": 0.0}, "--survey-prevalence"),
        ({"batch_size": 0}, "--batch-size"),
        ({"rows_per_task": 0}, "--rows-per-task"),
        ({"gpus": -1}, "--gpus"),
    ],
)
def test_contradictions_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        ScanConfig(**options)


def test_the_classifiers_decision_holds_unless_told_otherwise():
    assert decide(ScanConfig(), TUNED, SETTINGS) == TUNED
    assert decide(ScanConfig(threshold=0.9), TUNED, SETTINGS).threshold == 0.9
    assert decide(ScanConfig(threshold=0.0), TUNED, SETTINGS).threshold == 0.0


def test_another_target_needs_its_own_threshold():
    assert decide(ScanConfig(target="ring", threshold=0.4), TUNED, SETTINGS) == Decision("ring", 0.4, 0.2)
    with pytest.raises(ConfigError, match="'ring' needs a --threshold"):
        decide(ScanConfig(target="ring"), TUNED, SETTINGS)
    with pytest.raises(ConfigError, match="did you mean 'ring'"):
        decide(ScanConfig(target="rings"), TUNED, SETTINGS)


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
    return location


def block_of(images: np.ndarray, reasons: list[str | None]) -> pa.Table:
    count = len(images)
    columns = {name: [None] * count for name in ("ra", "dec", "tile", "item", "detail", "id_text")}
    columns |= {"galaxy_id": list(range(count)), "flags": [0] * count, "reason": reasons}
    columns["pixels"] = [image.tobytes() for image in images]
    return pa.table(columns, schema=scanned_schema(SIZE_PX))


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 255, (6, SIZE_PX, SIZE_PX, 3), dtype=np.uint8)


def test_scores_are_the_networks_and_rejects_have_none(classifier, images):
    scored = Score(classifier, "ring", 1.0, False)(block_of(images, [None, "bad_id", *[None] * 4]))
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
    every = Score(classifier, "ring", 0.0, False)(block_of(images, [None] * 6))
    scores = every["score"].to_numpy()
    floor = float(np.median(scores))
    some = Score(classifier, "ring", floor, False)(block_of(images, [None] * 6))
    assert every["image"].null_count == 0
    assert [image is not None for image in some["image"].to_pylist()] == (scores >= floor).tolist()
    assert decode_rgb(every["image"][0].as_py()).shape == (SIZE_PX, SIZE_PX, 3)


def test_a_block_of_rejects_alone(classifier, images):
    scored = Score(classifier, "ring", 0.0, False)(block_of(images, ["bad_id"] * 6))
    assert scored["score"].null_count == 6


@pytest.fixture
def scores(tmp_path: Path) -> Location:
    location = open_location(str(tmp_path / "scan"))
    with publish(location, "scores") as publication:
        for part in range(3):
            rows = [
                {"galaxy_id": 10 * part + i, "score": (10 * part + i) / 30, "flags": 0} for i in range(10)
            ]
            table = pa.Table.from_pylist(rows, schema=SCORE_SCHEMA)
            publication.add(write_parquet(location, f"shards/part-{part}.parquet", table))
    return location


def test_the_best_are_read_back_from_all_shards(scores):
    best, above = best_scores(scores, 0.5, 100)
    assert sorted(best["galaxy_id"].to_pylist()) == list(range(15, 30))
    assert above == 15
    best, above = best_scores(scores, 0.5, 4)
    assert sorted(best["galaxy_id"].to_pylist()) == [26, 27, 28, 29]
    assert above == 15


def test_a_threshold_that_nothing_reaches(scores):
    best, above = best_scores(scores, 0.99, 4)
    assert (len(best), above) == (0, 0)
    assert best.schema.names == SCORE_SCHEMA.names


def test_files_the_manifest_does_not_name_are_not_read(scores):
    stray = pa.Table.from_pylist([{"galaxy_id": 99, "score": 1.0, "flags": 0}], schema=SCORE_SCHEMA)
    pq.write_table(stray, f"{scores.path}/shards/stray.parquet")
    assert best_scores(scores, 0.5, 100)[1] == 15
