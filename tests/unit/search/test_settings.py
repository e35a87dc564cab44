"""Which labels a setting may use: so many of each class, nested, stable, and others for another seed."""

import numpy as np
import pyarrow as pa
import pytest

from galray.core.errors import ConfigError
from galray.data.batches import EmphasisRule
from galray.search.settings import Setting, class_names, classes_of, emphasis, filled_up, labelled_ids

NAMES = ("spiral", "edge_on", "cigar_shaped_smooth")
IDS = np.arange(588_000_000_000_000_000, 588_000_000_000_000_000 + 900, dtype=np.int64)
CLASSES = np.where(np.arange(900) % 10 == 0, 2, np.arange(900) % 2)
CLASSES[:30] = -1


def chosen(text: str, seed: int = 0, ids: np.ndarray = IDS, classes: np.ndarray = CLASSES) -> set[int]:
    return set(labelled_ids(ids, classes, NAMES, Setting.parse(text), seed).tolist())


def counts(ids: set[int]) -> list[int]:
    taken = np.isin(IDS, list(ids))
    return [int((CLASSES[taken] == index).sum()) for index in range(3)]


def test_so_many_of_each_class_and_none_of_unknown_class() -> None:
    assert counts(chosen("10")) == [10, 10, 10]
    assert len(chosen("all")) == 870
    assert counts(chosen("200")) == [200, 200, 87]  # a class that has fewer gives what it has


def test_only_the_rare_class_is_cut() -> None:
    spirals, edge_on, cigars = counts(chosen("all"))
    assert counts(chosen("cigar_shaped_smooth:10")) == [spirals, edge_on, 10]
    assert counts(chosen("cigar_shaped_smooth:0")) == [spirals, edge_on, 0]
    assert cigars > 10


def test_the_choice_is_nested_and_follows_from_seed_and_id_alone() -> None:
    assert chosen("10") < chosen("30") < chosen("100")
    assert chosen("10", seed=1) != chosen("10")
    order = np.random.default_rng(0).permutation(len(IDS))
    assert chosen("10", ids=IDS[order], classes=CLASSES[order]) == chosen("10")


@pytest.mark.parametrize("text", ["", "few", "0", "-3", "spiral:", "spiral:x"])
def test_settings_that_cannot_be_read_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--settings"):
        Setting.parse(text)


def test_a_rare_class_that_there_is_not_is_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 'cigar_shaped_smooth'"):
        Setting.parse("cigar_shaped:10").check_classes(NAMES)


def test_settings_are_told_apart() -> None:
    settings = [Setting.parse(text) for text in ("10", "all", "spiral:10")]
    assert [setting.key for setting in settings] == ["10-of-each", "all", "spiral-10"]
    assert len({str(setting) for setting in settings}) == 3


def test_classes_are_morphologies_or_the_target_and_all_others() -> None:
    labels = pa.table({"label": ["spiral", "dust_lane_early_type", None, "not_dust_lane_early_type"]})
    nothing = pa.FixedSizeListArray.from_arrays(pa.array(np.full(4 * 37, np.nan, np.float32)), 37)
    table = labels.append_column("votes", nothing)
    assert class_names("dust_lane_early_type") == ("dust_lane_early_type", "other")
    assert classes_of(table, "dust_lane_early_type").tolist()[1:] == [0, -1, 1]
    assert classes_of(table, "").tolist() == [4, -1, -1, -1]


def test_labelled_galaxies_get_their_share_evenly_over_classes() -> None:
    rules = [EmphasisRule.parse(rule) for rule in emphasis({"spiral": 40, "edge_on": 10}, 1000, 0.5)]
    assert [rule.times for rule in rules] == [12, 50]  # 500 of each, beside 1000 without labels
    assert rules[1].answers == ("features_or_disk", "edge_on")


def test_where_all_are_labelled_the_rare_are_shown_as_often_as_the_common() -> None:
    assert emphasis({"spiral": 90, "edge_on": 10}, 0, 0.5) == ("features_or_disk+edge_on:5",)
    assert emphasis({"spiral": 0}, 100, 0.5) == ()


def test_the_rarest_classes_are_filled_up_first() -> None:
    assert filled_up({"spiral": 30, "edge_on": 30}, 10) == {"spiral": 5, "edge_on": 5}
    assert filled_up({"spiral": 50, "edge_on": 20, "cigar_shaped_smooth": 3}, 15) == {
        "spiral": 0,
        "edge_on": 0,
        "cigar_shaped_smooth": 15,
    }
    filled = filled_up({"spiral": 50, "edge_on": 20, "cigar_shaped_smooth": 3}, 25)
    assert filled == {"spiral": 0, "edge_on": 4, "cigar_shaped_smooth": 21}
