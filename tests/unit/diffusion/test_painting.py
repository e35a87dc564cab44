"""Painting: what is asked of each galaxy, and rows from which it can be painted again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.testing import assert_array_equal

from galray.core.manifest import publish
from galray.core.schema import ANSWER_INDEX, ANSWER_NAMES, GALAXY_SCHEMA, N_ANSWERS
from galray.core.storage import Location, open_location
from galray.data.images import encode_jpeg, encode_png
from galray.diffusion.painting import Asked, Compute, Donor, Paint, donors, images_to_vary
from galray.diffusion.pipeline import GalaxyPipeline
from galray.diffusion.recipes import Plan, Request, Sampling

SAMPLING = Sampling(num_steps=2, guidance_rescale=0.3, guidance_interval=(0.1, 1.0))
LANES = Request("lanes", {"smooth": 0.9, "dust_lane:1.3": 0.8})


def table_of(galaxy_id: list[int], votes: np.ndarray, images: list[bytes] | None = None) -> pa.Table:
    cells = pa.FixedSizeListArray.from_arrays(pa.array(votes.astype(np.float32).ravel()), N_ANSWERS)
    return pa.table({"galaxy_id": galaxy_id, "votes": cells} | ({"image": images} if images else {}))


VOTES = np.random.default_rng(0).random((3, N_ANSWERS)).astype(np.float32)
REAL = table_of([11, 12, 13], VOTES)


def lent_to(request: Request, real: pa.Table, count: int, seed: int = 0) -> list[Donor]:
    """Return the donors of a request's galaxies."""
    plan = Plan.of([request], count, SAMPLING, seed)
    return donors(plan, {request.votes_of: real}).to_pylist()


@pytest.fixture
def published(tiny, tmp_path: Path) -> Location:
    location = open_location(str(tmp_path / "denoiser"))
    GalaxyPipeline.from_denoiser(tiny).save_pretrained(tmp_path / "model")
    with publish(location, "denoiser") as publication:
        publication.add_folder(tmp_path / "model")
    return location


def paint(
    published: Location, plan: Plan, real: pa.Table, batch: tuple[int, int], bfloat16: bool = False
) -> list[dict]:
    lent = donors(
        plan, {request.votes_of: real for request in plan.requests if request.votes_of} or {"": real}
    )
    unit = {"first": batch[0], "end": batch[1], "donors": lent[slice(*batch)].to_pylist()}
    return Paint(plan, Compute("cpu", 1, bfloat16), published)(unit).to_pylist()


def painted(published: Location, batch: tuple[int, int], bfloat16: bool = False, **requested) -> list[dict]:
    others = Request("others", **{"votes_of": "spiral", **requested})
    plan = Plan.of([LANES, others], 6, SAMPLING, seed=3)
    return paint(published, plan, table_of([5], np.full((1, N_ANSWERS), 0.5)), batch, bfloat16)


def test_votes_of_real_galaxies_come_once_before_any_comes_again():
    asked = Asked.of(Request("x", votes_of="x"))
    lent = lent_to(asked.request, REAL, 6)
    rows = np.stack([asked.condition(donor).votes.numpy() for donor in lent])
    assert_array_equal(np.sort(rows[:3], axis=0), np.sort(VOTES, axis=0))
    assert_array_equal(rows[:3], rows[3:])
    ids = [asked.provenance(donor)["votes_of_galaxy"] for donor in lent[:3]]
    assert_array_equal(VOTES[np.array(ids) - 11], rows[:3])


def test_each_galaxy_has_a_donor_of_its_own_request():
    """Labels have tables of their own, with images or without; who asks for nobody's votes has no donor."""
    pixel = encode_png(np.zeros((8, 8, 3), np.uint8))
    requests = [Request("a", votes_of="a"), LANES, Request("b", votes_of="b"), Request("a too", votes_of="a")]
    plan = Plan.of(requests, 12, SAMPLING, seed=0)
    lent = donors(plan, {"a": REAL, "b": table_of([7], VOTES[:1], [pixel])}).to_pylist()
    by_request = [
        [donor for donor, (request, _) in zip(lent, plan.galaxies().tolist(), strict=True) if request == i]
        for i in range(4)
    ]
    assert [donor["galaxy_id"] for donor in by_request[2]] == [7, 7, 7]
    assert {donor["image"] for donor in by_request[2]} == {pixel}
    assert by_request[1] == [None] * 3
    for of_a in (by_request[0], by_request[3]):
        assert sorted(donor["galaxy_id"] for donor in of_a) == [11, 12, 13]
        assert all(donor["image"] is None for donor in of_a)


def test_seeds_decide_which_real_galaxy_comes_when():
    many = table_of(list(range(50)), np.ones((50, N_ANSWERS)))
    orders = [
        [donor["galaxy_id"] for donor in lent_to(Request("x", votes_of="x"), many, 50, seed)]
        for seed in (0, 0, 1)
    ]
    assert orders[0] == orders[1] != orders[2]


def test_answers_go_before_the_votes_of_real_galaxies():
    asked = Asked.of(Request("x", {"dust_lane:1.3": 0.8}, votes_of="x"))
    donor = lent_to(asked.request, REAL, 1)[0]
    votes, weights = asked.condition(donor)
    named = torch.zeros(N_ANSWERS, dtype=torch.bool)
    named[ANSWER_INDEX["ring"] : ANSWER_INDEX["dust_lane"] + 1] = True
    assert float(votes[ANSWER_INDEX["dust_lane"]]) == pytest.approx(0.8)
    assert_array_equal(votes[~named].numpy(), np.array(donor["votes"], np.float32)[~named.numpy()])
    assert float(weights[ANSWER_INDEX["dust_lane"]]) == pytest.approx(1.3)


def test_rows_are_labelled_synthetic_training_galaxies(published):
    rows = painted(published, (0, 6))
    assert list(rows[0]) == [*GALAXY_SCHEMA.names, "reason"]
    assert [row["label"] for row in rows] == ["lanes", "others"] * 3
    assert {(r["source"], r["split"], r["height"], r["reason"]) for r in rows} == {
        ("synthetic", "train", 8, None)
    }
    assert len({row["galaxy_id"] for row in rows}) == 6
    assert max(row["galaxy_id"] for row in rows) < 0


@pytest.mark.parametrize("bfloat16", [False, True])
def test_a_batch_can_be_painted_again_from_its_rows(published, bfloat16):
    rows = painted(published, (0, 6), bfloat16)
    pipeline = GalaxyPipeline.from_pretrained(published.path)
    told = [json.loads(row["provenance"]) for row in rows]
    assert {t["model"] for t in told} == {told[0]["model"]}
    weights = torch.ones(6, N_ANSWERS)
    for i, one in enumerate(told):
        for name, weight in one["weights"].items():
            weights[i, ANSWER_NAMES.index(name)] = weight
    with torch.autocast("cpu", torch.bfloat16, enabled=told[0]["bfloat16"]):
        images = pipeline(
            torch.tensor([row["votes"] for row in rows]),
            weights,
            seeds=[one["seed"] for one in told],
            num_steps=told[0]["num_steps"],
            guidance_scale=told[0]["guidance_scale"],
            guidance_interval=tuple(told[0]["guidance_interval"]),
            guidance_rescale=told[0]["guidance_rescale"],
            sampler=told[0]["sampler"],
        )
    assert [encode_jpeg(image) for image in images] == [row["image"] for row in rows]


def test_variations_begin_from_real_galaxies_each_in_turn_and_turned():
    noise = np.random.default_rng(0).integers(0, 255, (3, 8, 8, 3), np.uint8)
    real = table_of([11, 12, 13], VOTES, [encode_png(one) for one in noise])
    lent = lent_to(Request("x", votes_of="x"), real, 27)
    images = images_to_vary(lent, 8)
    for place in range(3):
        donor = lent[place]["galaxy_id"] - 11
        assert_array_equal(images[place], noise[donor])
        assert_array_equal(images[place + 24], noise[donor])
        turned = {image.tobytes() for image in images[place:24:3]}
        assert len(turned) == 8
        assert noise[donor].transpose(1, 0, 2).tobytes() in turned


def test_what_is_varied_shows_and_is_told(published):
    def varied(level: int) -> list[dict]:
        image = encode_png(np.full((8, 8, 3), level, np.uint8))
        plan = Plan.of([Request("x", votes_of="x", start_time=0.9)], 2, SAMPLING, seed=3)
        return paint(published, plan, table_of([5], np.full((1, N_ANSWERS), 0.5), [image]), (0, 2))

    black, grey = varied(0), varied(200)
    assert black[0]["image"] != grey[0]["image"]
    told = json.loads(grey[0]["provenance"])
    assert (told["start_time"], told["votes_of_galaxy"]) == (0.9, 5)


def test_the_outline_is_asked_for_first(published):
    lane: dict[str, Any] = {"answers": {"odd": 1.0, "dust_lane": 0.7}, "votes_of": ""}
    smooth: dict[str, Any] = {"outline": {"smooth:2": 0.9}}
    alone = painted(published, (3, 6), **lane, outline_until=0.6)
    after = painted(published, (3, 6), **lane, **smooth, outline_until=0.6)
    never = painted(published, (3, 6), **lane, **smooth, outline_until=1.0)
    assert [row["image"] for row in never] == [row["image"] for row in alone]
    assert [row["image"] for row in after] != [row["image"] for row in alone]
    assert json.loads(after[0]["provenance"])["outline"] == {"smooth:2": 0.9}
    meant = [after[0]["votes"][ANSWER_INDEX[name]] for name in ("smooth", "dust_lane", "bar")]
    assert meant == pytest.approx([0.9, 0.7, float("nan")], nan_ok=True)


def test_a_request_is_painted_in_its_own_way(published):
    plain = painted(published, (3, 6))
    guided = painted(published, (3, 6), guidance_scale=5.0)
    assert [json.loads(row["provenance"])["guidance_scale"] for row in guided] == [5.0] * 3
    assert {row["label"] for row in guided} == {"others"}
    assert guided[0]["image"] != plain[0]["image"]
