"""The points of a search: all of them, by place and by value."""

import pytest

from galray.core.errors import ConfigError
from galray.search.config import SearchConfig
from galray.search.space import REAL_ONLY, Point, Space

SPACE = Space((1.0, 2.0), (0.1, 0.2, 0.4), (20,), (1.0, 1.3))


def test_real_galaxies_alone_are_tried_once() -> None:
    points = SPACE.points()
    assert len(set(points)) == len(points) == 1 + 2 * 3 * 2
    assert points[0] == REAL_ONLY
    assert sum(point.painting is None for point in points) == 1


def test_places_lead_to_points_and_back() -> None:
    for point in SPACE.points():
        assert SPACE.point(SPACE.places(point)) == point
    distributions = SPACE.distributions()
    assert {name: d.high for name, d in distributions.items()} == {
        "guidance_scale": 1,
        "augmentation_ratio": 3,
        "num_steps": 0,
        "condition_weight": 1,
    }


def test_how_galaxies_are_painted_is_no_matter_where_there_are_none() -> None:
    places = {"guidance_scale": 1, "augmentation_ratio": 0, "num_steps": 0, "condition_weight": 1}
    assert SPACE.point(places) == REAL_ONLY


def test_points_have_names_of_their_own() -> None:
    assert len({point.key for point in SPACE.points()}) == len(SPACE.points())
    assert str(Point(2, 0.1, 20, 1.3)) == "guidance 2, 20 steps, weight 1.3, ratio 0.1"


def test_points_painted_alike_share_a_synthetic_set() -> None:
    config = SearchConfig(num_steps=(10, 20), condition_weights=(1.0, 1.3))
    points = [point for point in config.space.points() if point.painting]
    sets = {config.classification(point, 0).synthetic for point in points}
    assert len(sets) == len(config.space.paintings()) == 3 * 2 * 2
    assert config.classification(Point(2.0, 0.05, 20, 1.0), seed=0).synthetic == (
        config.classification(Point(2.0, 0.2, 20, 1.0), seed=1).synthetic
    )
    assert config.classification(REAL_ONLY, seed=3).synthetic == ""


def test_a_set_is_named_by_all_that_it_depends_on() -> None:
    config = SearchConfig()
    painting = config.space.paintings()[0]
    more = SearchConfig(synthesize=config.synthesis(painting).__class__(count=7))
    assert more.synthesis(painting).output != config.synthesis(painting).output


def test_a_weight_reaches_what_is_asked_for() -> None:
    config = SearchConfig(condition_weights=(1.3,))
    (request, _) = config.synthesis(config.space.paintings()[0]).plan().requests
    assert set(request.answers) == {"smooth:1.3", "odd:1.3", "dust_lane:1.3", "completely_round:1.3"}


def test_another_plan_is_told_from_this_one() -> None:
    assert SearchConfig().plan() == SearchConfig(resume=True, concurrent_trials=3).plan()
    assert SearchConfig().plan() != SearchConfig(seeds=(0, 1)).plan()


@pytest.mark.parametrize(
    "options",
    [
        {"guidance_scales": ()},
        {"guidance_scales": (1.0, 1.0)},
        {"augmentation_ratios": (0.0, 0.1)},
        {"seeds": ()},
        {"objectives": ("beauty",)},
        {"objectives": ("purity", "f1", "completeness")},
        {"strategy": "optuna", "budget": 8},
    ],
)
def test_searches_that_cannot_be_are_refused(options: dict) -> None:
    with pytest.raises(ConfigError, match="--"):
        SearchConfig(**options)
