"""How trials become a ranking, and the choice that is told."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from galray.search.figures import heat_map, pareto_front
from galray.search.ranking import SHARE, on_front, over_seeds, point_of, rank, why
from galray.search.space import REAL_ONLY, Point

GOOD, POOR = Point(2.0, 0.1, 20, 1.0), Point(4.0, 0.1, 20, 1.0)


def trials() -> pd.DataFrame:
    """Two points with both seeds, and a third, best at first sight, that was stopped early."""
    rows = [
        (REAL_ONLY, 0, True, 0.30),
        (REAL_ONLY, 1, True, 0.34),
        (GOOD, 0, True, 0.40),
        (GOOD, 1, True, 0.50),
        (POOR, 0, False, 0.90),
    ]
    figures = {"completeness": 0.5, "purity": 0.25}
    return pd.DataFrame(
        [
            {**vars(point), "seed": seed, "epochs": 8, "through": through, "average_precision": value}
            | figures
            for point, seed, through, value in rows
        ]
    )


def ranked() -> Any:
    return rank(trials(), ["average_precision"], seeds=2)


def test_means_over_seeds_are_ranked_and_stopped_points_come_last() -> None:
    points = ranked()
    assert [point_of(row) for _, row in points.iterrows()] == [GOOD, REAL_ONLY, POOR]
    assert points["average_precision"].tolist() == pytest.approx([0.45, 0.32, 0.90])
    assert points["complete"].tolist() == [True, True, False]
    assert points["seeds"].tolist() == [2, 2, 0]


def test_interval_over_seeds_is_students() -> None:
    estimate = over_seeds([0.4, 0.5])
    assert estimate.value == pytest.approx(0.45)
    assert estimate.high - estimate.value == pytest.approx(12.706 * 0.05, rel=1e-3)  # t(0.975, 1) = 12.706
    assert np.isnan(over_seeds([0.4]).low)


def test_interval_of_a_share_is_one() -> None:
    free, share = over_seeds([0.9, 0.99]), over_seeds([0.9, 0.99], SHARE)
    assert free.high > 1
    assert (share.value, share.low, share.high) == (free.value, free.low, 1)


def test_front_holds_what_nothing_beats() -> None:
    values = np.array([[0.9, 0.1], [0.5, 0.5], [0.4, 0.5], [0.1, 0.9], [0.95, 0.95], [np.nan, 1.0]])
    assert on_front(values).tolist() == [False, False, False, False, True, False]
    takes_part = np.array([True, True, True, True, False, True])
    assert on_front(values, takes_part).tolist() == [True, True, False, True, False, False]


def test_two_objectives_are_weighed_by_their_harmonic_mean() -> None:
    rows = trials().query("through").assign(completeness=[0.9, 0.9, 0.5, 0.5], purity=[0.1, 0.1, 0.5, 0.5])
    points = rank(rows, ["completeness", "purity"], seeds=2)
    assert point_of(points.iloc[0]) == GOOD
    assert points["on_front"].tolist() == [True, True]


def test_the_choice_is_told_with_what_is_not_decided() -> None:
    text = why(ranked(), trials(), ["average_precision"])
    assert text.startswith(f"Chosen: {GOOD}. Of 2 points")
    assert "1 more were stopped early" in text
    assert "+0.130" in text
    assert "includes zero: not decided" in text


def test_figures_show_points_with_their_intervals() -> None:
    points = ranked()
    ax = heat_map(points, "average_precision").axes[0]
    assert "real only: 0.320 [0.07, 0.57]" in ax.get_title()
    assert {text.get_text().split("\n")[0] for text in ax.texts} == {"0.450", "(0.900)"}
    front = pareto_front(points).axes[0]
    assert len(front.containers) == 2  # the stopped one is left out
