"""Recipes: exact counts, batches painted in one way, and errors that name the request."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from galray.core.errors import ConfigError, InputError
from galray.core.schema import votes_of_label
from galray.core.storage import open_location
from galray.diffusion.conditions import condition
from galray.diffusion.recipes import GALAXIES_PER_SEED, RECIPES, Plan, Request, Sampling, is_file, read_recipe
from galray.diffusion.synthesize import SynthesizeConfig

GOOD = """
- label: dust_lane_early_type
  answers: {smooth: 0.8, odd: 0.75, dust_lane:1.3: 0.85}
  count: 5
  guidance_scale: 3
  guidance_interval: [0.1, 0.9]
- label: more spirals
  votes_of: spiral
  sampler: euler
- label: a lane across what never had one
  outline: {smooth: 0.8}
  outline_until: 0.9
  answers: {dust_lane: 1}
"""


@pytest.fixture
def written(tmp_path: Path):
    def write(text: str):
        (tmp_path / "recipe.yaml").write_text(text)
        return open_location(str(tmp_path / "recipe.yaml"))

    return write


def plan_of(*requests: Request, count: int = 7, seed: int = 0) -> Plan:
    return Plan.of(requests, count, Sampling(), seed)


def test_a_file_says_what_to_paint(written):
    lanes, spirals, across = read_recipe(written(GOOD))
    assert (across.outline, across.sampling(Sampling()).outline_until) == ({"smooth": 0.8}, 0.9)
    assert lanes.answers == {"smooth": 0.8, "odd": 0.75, "dust_lane:1.3": 0.85}
    assert (lanes.count, spirals.count, spirals.votes_of) == (5, None, "spiral")
    default = Sampling(num_steps=9, guidance_rescale=0.5)
    assert lanes.sampling(default) == Sampling(
        num_steps=9, guidance_rescale=0.5, guidance_scale=3, guidance_interval=(0.1, 0.9)
    )
    assert spirals.sampling(default) == Sampling(num_steps=9, guidance_rescale=0.5, sampler="euler")


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ("label: x\n  answers: {smoth: 1}", "did you mean 'smooth'"),
        ("label: x\n  answers: {smooth: 1}\n  guidence_scale: 2", "did you mean 'guidance_scale'"),
        ("label: x\n  answers: {smooth: 1}\n  guidance_scale: high", "guidance_scale: .*number.* not 'high'"),
        ("label: x\n  answers: {smooth: 1.2}", r"1.2 is not within \[0, 1\]"),
        ("label: x\n  answers: {smooth: 0.8, features_or_disk: 0.8}", "add up to 1.6"),
        ("label: x\n  answers: {dust_lane:strong: 1}", "weight must be a positive number"),
        ("label: x\n  answers: {smooth: 1}\n  guidance_scale: .nan", "guidance scale=nan"),
        ("label: x\n  answers: {smooth: 1}\n  guidance_interval: [0.9, 0.1]", "guidance interval"),
        ("label: x\n  answers: {smooth: 1}\n  outline: {rond: 1}", "'rond' is no Galaxy Zoo 2 answer"),
        ("label: x\n  answers: {smooth: 1}\n  outline_until: 2", "outline_until is 2"),
        ("label: x\n  outline: {smooth: 1}", "answers or votes_of"),
        ("label: x\n  answers: {smooth: 1}\n  num_steps: 0", "num_steps is 0"),
        ("label: x\n  answers: {smooth: 1}\n  sampler: eulr", "did you mean 'euler'"),
        ("label: x\n  answers: {smooth: 1}\n  count: 0", "count is 0"),
        ("label: x\n  answers: {smooth: 1}\n  count: 1.5", "count"),
        ("label: x", "answers or votes_of"),
        ("answers: {smooth: 1}", "label"),
        ("just text", "not 'just text'"),
    ],
)
def test_a_fault_is_told_with_the_file_and_the_request(written, entry, told):
    with pytest.raises(ConfigError, match=rf"recipe\.yaml: request 2.*{told}"):
        read_recipe(written(f"- label: good\n  answers: {{smooth: 1}}\n- {entry}\n"))


def test_every_fault_is_told_at_once(written):
    text = "- {label: a, answers: {smoth: 1}}\n- {label: b, votes_off: spiral}\n"
    with pytest.raises(ConfigError, match=r"request 1 \(a\).*request 2 \(b\)"):
        read_recipe(written(text))


@pytest.mark.parametrize("text", ["", "label: x", "- [", "[]"])
def test_what_is_no_list_of_requests_is_refused(written, text):
    with pytest.raises(ConfigError, match=r"recipe\.yaml"):
        read_recipe(written(text))


def test_yaml_makes_no_objects(written):
    with pytest.raises(ConfigError, match="no YAML"):
        read_recipe(written("- !!python/object/apply:os.system ['true']"))


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_recipe(open_location(str(tmp_path / "none.yaml")))


def test_files_and_names_are_told_apart():
    assert [is_file(name) for name in ("gz5", "gz4", "mine.yaml", "s3://b/mine", "a/b.yml")] == [
        False,
        False,
        True,
        True,
        True,
    ]


def test_gz5_is_asked_for_as_it_was_trained():
    for request in RECIPES["gz5"]:
        assert_array_equal(condition(request.answers).votes.numpy(), votes_of_label(request.label))
    assert len(RECIPES["gz5"]) == 5


def test_variations_need_real_galaxies():
    with pytest.raises(ConfigError, match=r"spiral: start_time 0\.8 .* votes_of must say of which label"):
        Plan.of([Request("spiral", {"spiral": 1.0}, start_time=0.8)], 5, Sampling(), seed=0)
    plan = Plan.of([Request("spiral", votes_of="spiral")], 5, Sampling(start_time=0.8), seed=0)
    assert plan.samplings[0].start_time == 0.8
    with pytest.raises(ConfigError, match="start_time is 0"):
        Sampling(start_time=0)


def test_labels_are_refused_where_nothing_is_asked_of_real_galaxies():
    assert SynthesizeConfig(recipe="gz5_as_real", labelled="labels.csv").labelled
    with pytest.raises(ConfigError, match="nothing asked for has votes_of"):
        SynthesizeConfig(recipe="gz5", labelled="labels.csv")


def test_so_many_of_each_label_are_painted_whichever_requests_paint_them():
    lanes = SynthesizeConfig(counts=("dust_lane_early_type:5",)).requests()
    assert [request.count for request in lanes] == [3, 2]
    some = SynthesizeConfig(
        recipe="gz5", count=9, counts=("spiral:0", "edge_on:4", "completely_round_smooth:1")
    )
    assert [(r.label, r.count) for r in some.requests()] == [("completely_round_smooth", 1), ("edge_on", 4)]
    assert some.plan().total == 5


@pytest.mark.parametrize(
    ("counts", "told"),
    [
        (("spirals:3",), "labelled 'spirals' .did you mean 'spiral'"),
        (("spiral",), "nothing asked for is labelled ''"),
        (("spiral:many",), "with how many galaxies"),
        (("spiral:-1",), "with how many galaxies"),
        (("spiral:3", "spiral:4"), "each label once"),
        (("spiral:0",), "no galaxy at all"),
    ],
)
def test_counts_that_cannot_be_painted_are_refused(counts, told):
    with pytest.raises(ConfigError, match=told):
        SynthesizeConfig(recipe="gz5", counts=counts)


def test_counts_are_exact_and_the_rest_is_shared():
    one, two, fixed = (Request("x", {"smooth": 1}, count=count) for count in (None, None, 4))
    assert plan_of(one, fixed, two, count=7).counts == (4, 4, 3)
    assert plan_of(fixed, count=7).total == 4


def test_every_galaxy_asked_for_is_in_one_batch_and_painted_in_its_own_way():
    requests = (
        Request("a", {"smooth": 1}, count=5),
        Request("b", {"smooth": 1}, count=3, guidance_scale=4.0),
        Request("c", {"smooth": 1}, count=9),
    )
    plan = plan_of(*requests)
    galaxies, batches = plan.galaxies(), plan.batches(4)
    assert_array_equal(np.concatenate([np.arange(*batch) for batch in batches]), np.arange(17))
    assert {(r, p) for r, p in galaxies.tolist()} == {
        (r, p) for r, n in enumerate((5, 3, 9)) for p in range(n)
    }
    for first, end in batches:
        assert len({plan.samplings[request] for request, _ in galaxies[first:end].tolist()}) == 1


def test_requests_painted_alike_take_turns():
    plan = plan_of(Request("a", {"smooth": 1}, count=2), Request("b", {"odd": 1}, count=4))
    assert plan.galaxies().tolist() == [[0, 0], [1, 0], [0, 1], [1, 1], [1, 2], [1, 3]]


def test_no_two_galaxies_share_their_noise():
    request = Request("a", {"smooth": 1})
    seeds = [
        plan_of(request, seed=seed).seed_of(n) for seed in range(5) for n in (0, 1, GALAXIES_PER_SEED - 1)
    ]
    assert len(set(seeds)) == len(seeds)
    with pytest.raises(ConfigError, match="Paint them in parts"):
        plan_of(request, count=GALAXIES_PER_SEED + 1)
