"""What grades tell, against figures that are known."""

import json

import numpy as np
import pyarrow as pa
import pytest

from galray.scan.agreement import cohen_kappas, completeness, fleiss_kappa, purity_by_rank
from galray.scan.vetting import GRADED_SCHEMA, consensus

GRADES_OF = {0: "A", 1: "C", 2: "reject"}


def graded_table(rows):
    """``(rank, {grader: grade})``, ... -> a graded catalogue."""
    columns = {
        "rank": [rank for rank, _ in rows],
        "grade": [consensus(grades.values()) for _, grades in rows],
        "grades": [json.dumps(grades) for _, grades in rows],
    }
    return pa.table({name: pa.array(columns[name], GRADED_SCHEMA.field(name).type) for name in columns})


def test_graders_who_agree_always_and_by_chance_alone():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 400)
    same = graded_table([(i + 1, {"Ann": GRADES_OF[k], "Bea": GRADES_OF[k]}) for i, k in enumerate(truth)])
    assert fleiss_kappa(same, seed=0)[0].value == pytest.approx(1)
    assert cohen_kappas(same, seed=0)[("Ann", "Bea")][0].value == pytest.approx(1)
    other = rng.integers(0, 3, 400)
    pairs = zip(truth, other, strict=True)
    rows = [(i + 1, {"Ann": GRADES_OF[a], "Bea": GRADES_OF[b]}) for i, (a, b) in enumerate(pairs)]
    apart = graded_table(rows)
    for kappa in (fleiss_kappa(apart, seed=0)[0], cohen_kappas(apart, seed=0)[("Ann", "Bea")][0]):
        assert kappa.low < 0 < kappa.high
        assert kappa.high - kappa.low < 0.4


def test_kappas_by_long_hand():
    """20 candidates: both confirm 8, both reject 6, and they differ on 6: p = 0.7, by chance 0.5."""
    rows = [("A", "B")] * 8 + [("reject", "reject")] * 6 + [("A", "reject")] * 2 + [("reject", "A")] * 4
    table = graded_table([(i + 1, {"Ann": a, "Bea": b}) for i, (a, b) in enumerate(rows)])
    kappa, both = cohen_kappas(table, seed=0)[("Ann", "Bea")]
    by_chance = 0.5 * 0.6 + 0.5 * 0.4
    assert both == 20
    assert kappa.value == pytest.approx((0.7 - by_chance) / (1 - by_chance))
    share = 22 / 40
    by_chance = share**2 + (1 - share) ** 2
    assert fleiss_kappa(table, seed=0)[0].value == pytest.approx((0.7 - by_chance) / (1 - by_chance))


def test_graders_of_different_parts_and_one_alone():
    table = graded_table(
        [(1, {"Ann": "A", "Bea": "A"}), (2, {"Bea": "C", "Cy": "C"}), (3, {"Ann": "A"}), (4, {})]
    )
    kappa, count = fleiss_kappa(table, seed=0)
    assert (kappa.value, count) == (pytest.approx(1), 2)
    assert {pair: both for pair, (_, both) in cohen_kappas(table, seed=0).items()} == {
        ("Ann", "Bea"): 1,
        ("Bea", "Cy"): 1,
    }
    alone = graded_table([(1, {"Ann": "A"})])
    assert fleiss_kappa(alone, seed=0)[1] == 0
    assert cohen_kappas(alone, seed=0) == {}


def test_purity_by_rank_counts_each_graded_candidate_once():
    rows = [(rank, {"Ann": "A" if rank <= 10 or rank % 2 else "reject"}) for rank in range(1, 36)]
    rows += [(36, {}), (None, {"Ann": "A"})]
    shares = purity_by_rank(graded_table(rows))
    assert [(first, last) for first, last, _ in shares] == [(1, 10), (11, 20), (21, 36)]
    assert [(rate.count, rate.total) for *_, rate in shares] == [(10, 10), (5, 10), (8, 15)]
    assert purity_by_rank(graded_table([])) == []


def test_completeness_from_the_random_arm():
    """40 of 50 listed confirmed; 2 of 100 drawn outside: of 10,000 sources, 199 are missed."""
    rows = [(i + 1, {"Ann": "A" if i < 40 else "reject"}) for i in range(50)]
    rows += [(None, {"Ann": "B" if i < 2 else "reject"}) for i in range(100)]
    measured = completeness(graded_table(rows), 10_050)
    assert measured is not None
    share, missed = measured
    assert (missed.count, missed.total) == (2, 100)
    assert share.value == pytest.approx(40 / (40 + 10_000 * 0.02))
    assert share.low == pytest.approx(40 / (40 + 10_000 * missed.high))
    assert share.high == pytest.approx(40 / (40 + 10_000 * missed.low))
    assert completeness(graded_table(rows[:50]), 10_050) is None


def test_the_interval_of_completeness_holds_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(5)
    n, n_listed, true_listed, missed_share, drawn, held = 20_000, 100, 80, 0.004, 800, 0
    truth = true_listed / (true_listed + (n - n_listed) * missed_share)
    listed = [(i + 1, {"Ann": "A" if i < true_listed else "reject"}) for i in range(n_listed)]
    for _ in range(100):
        found = rng.binomial(drawn, missed_share)
        outside = [(None, {"Ann": "A" if i < found else "reject"}) for i in range(drawn)]
        measured = completeness(graded_table(listed + outside), n)
        assert measured is not None
        held += measured[0].low <= truth <= measured[0].high
    assert held >= 90
