"""What a scan decides before any cluster time is spent, and what it reads back."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch._inductor.config as inductor

from galray.classifier import network
from galray.classifier.calibration import fit_temperature, shift_prior
from galray.classifier.decision import Decision
from galray.classifier.network import Classifier, ClassifierConfig
from galray.classifier.targets import DUST_LANE_EARLY_TYPE, RING
from galray.core.errors import ConfigError, InputError
from galray.core.manifest import publish, write_parquet
from galray.core.precision import StatedPrecision
from galray.core.schema import SCORE_SCHEMA
from galray.core.storage import Location, open_location
from galray.data.images import decode_rgb
from galray.scan import engine
from galray.scan.aim import Aim, decide
from galray.scan.columns import SOURCE_SCHEMA, sources_table
from galray.scan.engine import Engine, check_agreement
from galray.scan.ensemble import Ensemble
from galray.scan.handover import best_scores
from galray.scan.options import ScanConfig
from galray.scan.pixels import scanned_schema
from galray.scan.scoring import Score, ScoreUnit, Scoring, UnitImages

SIZE_PX = 32
TUNED = Decision("dust_lane_early_type", 0.7, 0.1)
SETTINGS = ClassifierConfig(
    "resnet-tiny", SIZE_PX, targets=(DUST_LANE_EARLY_TYPE, RING), prevalence=(0.1, 0.2)
)


VALIDATION = {  # the highest score is no target
    "galaxy_id": np.arange(12),
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
        ({"cutout_px": 64, "cutout_radii": 8.0}, "Give one of --cutout-px"),
        ({"cutout_arcsec": 25.3, "cutout_radii": 8.0}, "Give one of --cutout-px"),
        ({"keep_image_score": -0.1}, "--keep-image-score"),
        ({"aim": Aim(threshold=0.5), "keep_image_score": 0.6}, "without their cutouts"),
        ({"survey_prevalence": 0.0}, "--survey-prevalence"),
        ({"batch_size": 0}, "--batch-size"),
        ({"rows_per_task": 0}, "--rows-per-task"),
        ({"gpus": -1}, "--gpus"),
        ({"engine": "openvin"}, "did you mean 'openvino'"),
        ({"engine": "openvino", "gpus": 1}, "runs on CPUs"),
        ({"engine": "compiled"}, "minutes on a CPU"),
        ({"ensemble": ("a", "a")}, "twice"),
        ({"saturation": 0.0}, "--saturation"),
        ({"blend_radius_arcsec": -1.0}, "--blend-radius-arcsec"),
    ],
)
def test_contradictions_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        ScanConfig(**options)


def test_hats_that_cannot_be_written_is_refused_at_the_start(monkeypatch):
    monkeypatch.setattr("galray.scan.options.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"--hats needs LSDB: pip install 'galray\[hats\]'"):
        ScanConfig(hats=True)
    assert not ScanConfig().hats


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
    return decide(aim, target, prevalence, Ensemble.read((classifier,)))


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


def published(folder: Path, config: ClassifierConfig, predictions: dict[str, Any], seed: int = 0) -> Location:
    """Publish an untrained classifier that is said to have made these predictions."""
    location = open_location(str(folder / "classifier"))
    torch.manual_seed(seed)
    with publish(location, "classifier") as publication:
        network.save(Classifier(config), folder / "model")
        publication.add_folder(folder / "model")
        publication.write("decision.json", json.dumps(vars(TUNED)))
        publication.add(write_parquet(location, "predictions.parquet", pa.table(predictions)))
    return location


@pytest.fixture
def classifier(tmp_path: Path) -> Location:
    return published(tmp_path, SETTINGS, VALIDATION)


SECOND = replace(SETTINGS, prevalence=(0.4, 0.5))
SECOND_SCORE = np.array([0.8, 0.7, 0.9, 0.85, 0.2, 0.3, 0.1, 0.4, 0.2, 0.1, 0.3, 0.5])
MEAN_SCORE = (VALIDATION["score"] + SECOND_SCORE) / 2


@pytest.fixture
def second(tmp_path: Path) -> Location:
    """Judged on the same galaxies, in another order; at the first one's prevalence it says `SECOND_SCORE`."""
    said = shift_prior(SECOND_SCORE, 0.1, 0.4).astype(np.float32)
    predictions = {name: column[::-1] for name, column in {**VALIDATION, "score": said}.items()}
    return published(tmp_path / "second", SECOND, predictions, seed=7)


def test_an_ensemble_is_tuned_on_the_mean_of_its_validation_predictions(classifier, second):
    both, truth = Ensemble.read((classifier, second)), VALIDATION["truth"]
    decision = decide(Aim(), "", None, both)

    def f1(threshold):
        chosen = truth[threshold <= MEAN_SCORE]
        return 2 * (chosen == 1).sum() / ((chosen >= 0).sum() + (truth == 1).sum())

    assert decision.threshold == pytest.approx(max(MEAN_SCORE, key=f1))
    share = (4 + 0.5) / (11 + 1)  # of true ones among the known, as `losses.balance` counts them
    assert decision.temperature == pytest.approx(fit_temperature(truth, MEAN_SCORE, 0.1, share), rel=1e-3)
    assert decision.temperature != pytest.approx(TUNED.temperature, rel=0.1)
    assert (decision.target, decision.train_prevalence) == (TUNED.target, TUNED.train_prevalence)
    given = decide(Aim(threshold=0.9), "", None, both)
    assert (given.threshold, given.temperature) == (0.9, decision.temperature)
    complete = decide(Aim(completeness=0.75), "", None, both)
    assert complete.threshold == pytest.approx(np.sort(MEAN_SCORE[truth == 1])[1])


def test_turns_are_tuned_on_turned_validation_galaxies(classifier, second, tmp_path):
    turned = MEAN_SCORE.astype(np.float32)
    judged = published(tmp_path / "turned", SETTINGS, VALIDATION | {"score_turned": turned})
    alone, both = Ensemble.read((judged,), turns=True), Ensemble.read((classifier, second))
    np.testing.assert_array_equal(alone.judged(TUNED.target, "validation")[1], turned)
    decision, same_mean = (decide(Aim(), "", None, ensemble) for ensemble in (alone, both))
    assert decision.threshold == pytest.approx(same_mean.threshold)
    assert decision.temperature == pytest.approx(same_mean.temperature, rel=1e-3)
    assert decide(Aim(), "", None, Ensemble.read((judged,))) == TUNED
    with pytest.raises(InputError, match="was not judged by turned images"):
        decide(Aim(), "", None, Ensemble.read((classifier,), turns=True))


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (SECOND, {"galaxy_id": np.arange(1, 13)}, r"other validation .*12, 11 of them the same"),
        (SECOND, {"truth": np.roll(VALIDATION["truth"], 1)}, "3 of them with another truth"),
        (replace(SECOND, targets=SECOND.targets[::-1]), {}, "was tuned for 'ring'"),
    ],
)
def test_classifiers_that_cannot_be_tuned_as_one(classifier, tmp_path, config, changes, message):
    other = published(tmp_path / "other", config, VALIDATION | changes)
    with pytest.raises(ConfigError, match=message):
        decide(Aim(), "", None, Ensemble.read((classifier, other)))
    with pytest.raises(ConfigError, match=message):  # its probabilities are no better known
        decide(Aim(threshold=0.5), "", None, Ensemble.read((classifier, other)))
    assert decide(Aim(threshold=0.5), "ring", None, Ensemble.read((classifier, other))).temperature == 1


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


def test_an_ensemble_averages_at_the_first_ones_prevalence(classifier, second, images):
    both = score((classifier, second), block_of(images, [None] * 6))
    first = network.predict(network.load(classifier.path), images).targets[:, 1]
    theirs = shift_prior(network.predict(network.load(second.path), images).targets[:, 1], 0.5, 0.2)
    np.testing.assert_allclose(both["score"].to_numpy(), (first + theirs) / 2, atol=1e-6)
    np.testing.assert_allclose(both["score_sd"].to_numpy(), np.abs(first - theirs) / 2, atol=1e-6)


def test_the_reference_engine_needs_no_check_and_others_tell_how_far_they_are(classifier):
    assert check_agreement((classifier,), Engine()) == {"name": "torch", "precision": "float32"}
    told = check_agreement((classifier,), Engine(precision="bfloat16"))
    assert 0 < told["largest_difference"] < told["tolerance"] == 0.02


def test_an_engine_that_differs_is_refused(classifier, monkeypatch):
    monkeypatch.setattr(engine, "TOLERANCE_BFLOAT16", 1e-9)
    with pytest.raises(ConfigError, match=r"differs from torch in float32 by .* where 1e-09 is tolerated"):
        check_agreement((classifier,), Engine(precision="bfloat16"))


def test_an_engine_that_is_not_installed_is_named(classifier, monkeypatch):
    monkeypatch.setattr(engine, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"pip install 'galray\[openvino\]'"):
        check_agreement((classifier,), Engine("openvino"))


@pytest.mark.parametrize("precision", get_args(StatedPrecision))
def test_openvino_agrees_with_torch(classifier, images, precision):
    block, runs_on = block_of(images, [None] * 6), Engine("openvino", precision)
    assert check_agreement((classifier,), runs_on)["largest_difference"] <= runs_on.tolerance
    expected, found = score(classifier, block), score(classifier, block, engine=runs_on)
    np.testing.assert_allclose(
        found["score"].to_numpy(), expected["score"].to_numpy(), atol=runs_on.tolerance
    )


def test_what_cannot_be_compiled_is_told_at_the_start(classifier, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    with inductor.patch({"cpp.cxx": (str(tmp_path / "no-compiler"),)}), pytest.raises(ConfigError) as refused:
        check_agreement((classifier,), Engine("compiled"))
    assert re.search(r"cannot compile the network here: .*compiler.* Install a C\+\+", str(refused.value))


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
