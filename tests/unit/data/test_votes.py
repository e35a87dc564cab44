"""Which votes are known: of how many volunteers an answer is, and what a label stands in for."""

import numpy as np
import pyarrow as pa

from galray.core.schema import ANSWER_INDEX, N_ANSWERS, votes_of_label
from galray.data.votes import condition_votes, volunteers_asked
from tests.unit.data.test_batches import galaxies, votes

SMOOTH = {
    "smooth": 0.75,
    "features_or_disk": 0.2,
    "in_between": 1.0,
    "odd": 0.1,
    "not_odd": 0.9,
    "dust_lane": 1.0,
}
DISK = {"bar": 0.5, "no_bar": 0.5, "spiral": 1.0, "tight_arms": 1.0, "two_arms": 1.0, "obvious_bulge": 1.0}


def of(known: np.ndarray, *names: str) -> list[float]:
    return [float(known[ANSWER_INDEX[name]]) for name in names]


def known(**row: object) -> np.ndarray:
    return condition_votes(galaxies([row]))[0]


def test_volunteers_prefer_volunteers_to_labels() -> None:
    found = condition_votes(
        galaxies([{"votes": votes(smooth=0.7), "label": "spiral"}, {"label": "spiral"}, {}])
    )
    assert found[0, ANSWER_INDEX["smooth"]] == np.float32(0.7)
    np.testing.assert_array_equal(found[1], votes_of_label("spiral"))
    assert np.isnan(found[2]).all()


def test_volunteers_are_counted_down_the_tree() -> None:
    fractions = np.array([votes(**SMOOTH, not_edge_on=1.0, **DISK)], dtype=np.float32)
    asked = volunteers_asked(fractions, np.array([40], dtype=np.float32))[0]
    assert of(asked, "smooth", "in_between", "edge_on") == [40, 30, 8]
    # Through bars or none, spirals with arms: eight. And odd is asked of them, and of the 30 who said smooth.
    np.testing.assert_allclose(
        of(asked, "two_arms", "no_bulge", "odd", "dust_lane"), [8, 8, 38, 3.8], rtol=1e-6
    )


def test_what_few_volunteers_say_is_unknown() -> None:
    row = {"votes": votes(**SMOOTH), "classifications": 40}  # of whom four said odd
    assert np.isnan(of(known(**row), "dust_lane", "ring")).all()
    np.testing.assert_allclose(of(known(**row), "smooth", "in_between", "odd"), [0.75, 1.0, 0.1])
    assert of(known(**{**row, "classifications": 80}), "dust_lane") == [1.0]


def test_where_nobody_counted_the_volunteers_votes_are_known() -> None:
    assert of(known(votes=votes(**SMOOTH), classifications=None), "dust_lane") == [1.0]


def test_a_galaxy_that_almost_nobody_saw_falls_back_on_its_label() -> None:
    found = known(votes=votes(**SMOOTH), classifications=3, label="spiral")
    np.testing.assert_array_equal(found, votes_of_label("spiral"))
    assert np.isnan(known(votes=[float("nan")] * N_ANSWERS, classifications=0)).all()


def test_the_published_table_is_not_changed() -> None:
    table: pa.Table = galaxies([{"votes": votes(**SMOOTH), "classifications": 1}])
    condition_votes(table)
    assert of(np.array(table["votes"][0].as_py()), "dust_lane") == [1.0]
