"""The points of a search, and how trials become a ranking."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from galray.core.errors import ConfigError, TrainingError
from galray.search.tune import SearchConfig, heat_map, summarise, trial_table


def trials() -> pd.DataFrame:
    rows = [
        (0.0, 0.0, 0, 0.30),
        (0.0, 0.0, 1, 0.34),
        (2.0, 0.1, 0, 0.50),
        (2.0, 0.1, 1, 0.40),
        (4.0, 0.1, 0, 0.20),
        (4.0, 0.1, 1, np.nan),
    ]
    frame = pd.DataFrame(rows, columns=["guidance_scale", "augmentation_ratio", "seed", "average_precision"])
    return frame.assign(completeness=0.5, purity=0.25, f1=1 / 3, epochs=8)


def test_points_try_no_synthetic_galaxies_once() -> None:
    config = SearchConfig(guidance_scales=(1.0, 2.0), augmentation_ratios=(0.1, 0.2))
    points = config.points()
    assert len(points) == 5
    assert [p["augmentation_ratio"] for p in points].count(0.0) == 1
    assert config.classification(**points[0], seed=3).synthetic == ""


def test_trials_of_one_guidance_share_a_synthetic_set() -> None:
    config = SearchConfig()
    first = config.classification(2.0, 0.05, seed=0)
    second = config.classification(2.0, 0.2, seed=1)
    other = config.classification(4.0, 0.2, seed=1)
    assert first.synthetic == second.synthetic != other.synthetic
    assert first.synthetic == config.synthesis(2.0).output


def test_an_interrupted_search_is_not_taken_for_a_whole_one() -> None:
    point = {"guidance_scale": 2.0, "augmentation_ratio": 0.1}
    figures = {"average_precision": 0.5, "completeness": 0.6, "purity": 0.7, "f1": 0.65, "step": 8}
    run = SimpleNamespace(error=None, config={"point": point, "seed": 0}, metrics=figures)
    results: Any = [run]
    assert trial_table(results).iloc[0].to_dict() | point | {"seed": 0, "epochs": 8, "purity": 0.7} == (
        trial_table(results).iloc[0].to_dict()
    )
    results.append(SimpleNamespace(error=None, config=run.config, metrics={}))
    with pytest.raises(TrainingError, match="--resume"):
        trial_table(results)


def test_summary_ranks_means_over_seeds() -> None:
    points = summarise(trials())
    assert points["average_precision"].tolist() == pytest.approx([0.45, 0.32, 0.20])
    assert points["guidance_scale"].tolist() == [2.0, 0.0, 4.0]
    assert points["seeds"].tolist() == [2, 2, 2]
    assert points["average_precision_standard_error"].iloc[0] == pytest.approx(0.05)


def test_heat_map_shows_augmented_points_and_names_the_baseline() -> None:
    figure = heat_map(summarise(trials()))
    ax = figure.axes[0]
    assert "real only: 0.320" in ax.get_title()
    assert {text.get_text().split("\n")[0] for text in ax.texts} == {"0.450", "0.200"}


@pytest.mark.parametrize(
    "options", [{"guidance_scales": ()}, {"augmentation_ratios": (0.0, 0.1)}, {"seeds": ()}]
)
def test_empty_searches_are_refused(options: dict) -> None:
    with pytest.raises(ConfigError):
        SearchConfig(**options)
