"""Decoding of galaxy batches, and the emphasis on rare ones."""

import numpy as np
import pyarrow as pa
import pytest

from galray.core.errors import ConfigError, InputError
from galray.core.schema import ANSWER_INDEX, GALAXY_SCHEMA, N_ANSWERS
from galray.data.batches import Emphasise, EmphasisRule, decode_images
from galray.data.images import encode_jpeg, encode_png


def galaxies(rows: list[dict]) -> pa.Table:
    blank = encode_png(np.zeros((8, 8, 3), dtype=np.uint8))
    base = {"survey": "t", "image": blank, "height": 8, "width": 8, "split": "train", "source": "mock"}
    nothing = [float("nan")] * N_ANSWERS
    filled = [
        {"votes": nothing, "provenance": "{}", **base, **row, "galaxy_id": i} for i, row in enumerate(rows)
    ]
    return pa.Table.from_pylist(filled, schema=GALAXY_SCHEMA)


def votes(**answers: float) -> list[float]:
    values = [float("nan")] * N_ANSWERS
    for name, fraction in answers.items():
        values[ANSWER_INDEX[name]] = fraction
    return values


def test_decode_resizes_and_keeps_order() -> None:
    grey = [np.full((16, 16, 3), level, dtype=np.uint8) for level in (10, 200)]
    images = decode_images(galaxies([{"image": encode_jpeg(image)} for image in grey]), 8)
    assert images.shape == (2, 8, 8, 3)
    assert images.dtype == np.uint8
    np.testing.assert_allclose(images.mean(axis=(1, 2, 3)), [10, 200], atol=1.5)


def test_decode_names_the_galaxy() -> None:
    with pytest.raises(InputError, match=r"galaxy 1: .*--verify decode"):
        decode_images(galaxies([{}, {"image": b"\xff\xd8nothing"}]), 8)


def test_emphasis_needs_every_answer_and_enough_volunteers() -> None:
    dusty = {"votes": votes(smooth=0.8, odd=0.5, dust_lane=0.9), "classifications": 40}
    rows = [
        dusty,
        {**dusty, "classifications": 10},  # five volunteers who say odd may be mistaken
        {"votes": votes(smooth=0.2, odd=0.5, dust_lane=0.9), "classifications": 40},
        {"votes": votes(smooth=0.8), "classifications": None},
    ]
    shown = Emphasise(["smooth+dust_lane:3"])(galaxies(rows))["galaxy_id"].to_pylist()
    assert shown == [0, 0, 0, 1, 2, 3]


def test_emphasis_on_a_plain_answer_asks_for_no_odd_votes() -> None:
    rows = [{"votes": votes(edge_on=0.9), "classifications": 40}, {"votes": votes(edge_on=0.1)}]
    assert Emphasise(["edge_on:2"])(galaxies(rows))["galaxy_id"].to_pylist() == [0, 0, 1]


def test_emphasis_counts_labels_and_takes_the_most() -> None:
    rows = [{"label": "cigar_shaped_smooth"}, {"label": "spiral"}]
    shown = Emphasise(["smooth:2", "cigar_shaped:3"])(galaxies(rows))["galaxy_id"].to_pylist()
    assert shown == [0, 0, 0, 1]


@pytest.mark.parametrize("rule", ["dustlane:3", "smooth", "smooth:0", "smooth:x", ":3", "smooth+:2"])
def test_emphasis_rules_are_checked(rule: str) -> None:
    with pytest.raises(ConfigError, match="--emphasis"):
        EmphasisRule.parse(rule)
