"""Findings: shares with their counts, distances beside their floors, and copies beyond chance."""

import json

import numpy as np
import pytest

from galray.core.intervals import Rate
from galray.diffusion.fidelity import Nearest, matched_draws, wasserstein
from galray.evaluation.compare import (
    Findings,
    against_floor,
    brightness,
    consistency,
    feature_distances,
    near_copies,
    physical_distances,
    relative_difference,
)
from galray.evaluation.sample import Judge, Sample
from tests.unit.evaluation.conftest import MakeSample


def test_consistency_is_held_against_the_accuracy_on_real_galaxies(
    judge: Judge, make_sample: MakeSample
) -> None:
    real = make_sample([0] * 10 + [4] * 10 + [-1], predicted=np.array([0] * 10 + [4] * 8 + [3] * 2 + [4]))
    synthetic = make_sample([0] * 4 + [4] * 4, predicted=np.array([0] * 4 + [4] * 2 + [0] * 2))
    whole, *rows = consistency(real, synthetic, judge, seed=0)
    by_name = {row.name: row for row in rows}
    assert set(by_name) == set(judge.config.class_names)
    assert by_name["spiral"].synthetic == Rate(2, 4)
    assert by_name["spiral"].real == Rate(8, 10)
    assert by_name["spiral"].ratio.value == pytest.approx(0.5 / 0.8)
    assert by_name["spiral"].ratio.low < 0.5 / 0.8 < by_name["spiral"].ratio.high
    assert whole.synthetic == Rate(6, 8)
    assert whole.ratio.value == pytest.approx(0.75 / 0.9)
    assert np.isnan(by_name["edge_on"].ratio.value)  # there is none


def test_more_galaxies_narrow_the_ratio(judge: Judge, make_sample: MakeSample) -> None:
    widths = []
    for count in (20, 2000):
        sample = make_sample([0] * count, predicted=np.resize([0, 0, 0, 1], count))
        ratio = consistency(sample, sample, judge, seed=0)[1].ratio
        assert ratio.low < 1 < ratio.high
        widths.append(ratio.high - ratio.low)
    assert widths[1] < widths[0] / 5


def test_a_rare_target_is_judged_both_ways(target_judge: Judge, make_sample: MakeSample) -> None:
    real = make_sample(
        [0] * 6, truth=np.array([1, 1, 0, 0, 0, -1]), accepted=np.array([1, 0, 0, 0, 1, 1], dtype=bool)
    )
    rows = {row.name: row for row in consistency(real, real, target_judge, seed=0)}
    assert rows["dust_lane_early_type"].real == Rate(1, 2)
    assert rows["not dust_lane_early_type"].real == Rate(2, 3)
    assert real.stratum(target_judge).tolist() == [1, 1, 0, 0, 0, 0]


def shifted(make_sample: MakeSample, shift: float, count: int = 200) -> tuple[Sample, Sample]:
    real, synthetic = (make_sample(np.arange(count) % 3, seed=seed) for seed in (0, 1))
    moved = {"features": synthetic.features + shift, "brightness": synthetic.brightness + shift}
    return real, make_sample(np.arange(count) % 3, seed=1, **moved)


@pytest.mark.parametrize(("shift", "told_apart"), [(0.0, False), (1.0, True)])
def test_only_another_distribution_exceeds_the_floor(
    shift: float, told_apart: bool, make_sample: MakeSample
) -> None:
    real, synthetic = shifted(make_sample, shift)
    draws = list(matched_draws(real.morphology, synthetic.morphology, seed=0, count=12))
    found = feature_distances(real, synthetic, draws, 3)
    found |= physical_distances({"b": real.brightness}, {"b": synthetic.brightness}, draws)
    for name in ("frechet_distance", "kernel_distance_x1000", "b"):
        assert (found[name].found.low > found[name].floor.high) == told_apart, name
    for name in ("precision", "recall"):
        assert (found[name].found.high < found[name].floor.low) == told_apart, name


def test_draws_take_the_statistic_of_the_rows_drawn(make_sample: MakeSample) -> None:
    real, synthetic = shifted(make_sample, 5.0)
    draws = list(matched_draws(real.morphology, synthetic.morphology, seed=0, count=3))
    values = [wasserstein(real.brightness[d.real], synthetic.brightness[d.synthetic]) for d in draws]
    found = against_floor(wasserstein, draws, real.brightness, synthetic.brightness).found
    assert found.value == pytest.approx(np.median(values))
    assert found.low >= min(values)


def test_a_quantity_nobody_could_measure_is_left_out(make_sample: MakeSample) -> None:
    real, synthetic = shifted(make_sample, 0.0)
    draws = list(matched_draws(real.morphology, synthetic.morphology, seed=0, count=2))
    nothing = np.full(len(real), np.nan)
    assert physical_distances({"size": nothing}, {"size": nothing}, draws) == {}


def test_brightness_is_compared_kind_by_kind(judge: Judge, make_sample: MakeSample) -> None:
    classes = np.repeat([0, 1], 300)
    real = make_sample(classes)
    factor = np.where(classes == 1, 1.1, 1.0)
    synthetic = make_sample(classes, brightness=real.brightness * factor)
    same, brighter = brightness(judge.strata, real.light(judge), synthetic.light(judge), seed=0)
    for key in ("mean", "percentile_5", "percentile_95"):
        assert getattr(same, key).value == pytest.approx(0)
        assert getattr(brighter, key).value == pytest.approx(0.1)
        assert getattr(brighter, key).low < 0.1 < getattr(brighter, key).high
    assert (brighter.count, brighter.real) == (300, 300)


def test_bootstrap_interval_covers_the_truth() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(40):
        a, b = rng.normal(11, 2, 60), rng.normal(10, 2, 60)
        found = relative_difference(a, b, np.mean, seed)
        covered += found.low <= 0.1 <= found.high
    assert covered >= 34


def nearest(distances: np.ndarray) -> Nearest:
    return Nearest(distances, np.arange(len(distances)))


def test_near_copies_beyond_those_among_held_out_galaxies() -> None:
    held_out = nearest(np.random.default_rng(0).uniform(0.5, 1, 1000))
    honest, copied = (np.random.default_rng(1).uniform(0.5, 1, 1000) for _ in range(2))
    copied[:80] = 0.01
    found = near_copies(nearest(honest), held_out, 0.01)
    assert found.held_out.count == pytest.approx(10, abs=1)
    assert not found.exceeds
    found = near_copies(nearest(copied), held_out, 0.01)
    assert found.synthetic.count >= 80
    assert found.exceeds


def test_findings_become_plain_json(judge: Judge, make_sample: MakeSample) -> None:
    sample = make_sample([0, 0, 1, 1])
    findings = Findings(
        counts={"real": 4},
        consistency=consistency(sample, sample, judge, seed=0),
        features={},
        physical={},
        brightness=brightness(judge.strata, sample.light(judge), sample.light(judge), seed=0),
        brightness_floor=[],
        brightness_learnt=[],
        copies={"pixels": near_copies(nearest(np.ones(3)), nearest(np.ones(3)), 0.1)},
    )
    read = json.loads(json.dumps(findings.as_dict()))
    assert read["consistency"]["in_between_smooth"]["real"]["total"] == 2
    assert read["brightness"]["in_between_smooth"]["mean"]["value"] == 0
    assert read["copies"]["pixels"]["synthetic"]["count"] == 3
