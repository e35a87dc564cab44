"""Mock volunteers: what people would answer about a mock galaxy, given what can be seen of it.

Each volunteer walks the real decision tree. What they see is limited by seeing and noise: arms,
bars and dust lanes vanish in small, faint galaxies, and thin cigars look like edge-on disks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from scipy.special import expit

from galray.core.schema import ANSWER_INDEX, ANSWERS, DECISION_TREE, QUESTION_INDEX, QUESTION_OF_ANSWER
from galray.data.mock_light import NEARBY_SEEING, SKY_NOISE, SKY_NOISE_SCALE_ARCSEC, flux_of

_CLEAN_FRACTION, _CLEAN_VOTES = 0.8, 20
_MAX_STEPS = 10
_SHARED_OPINION = 0.375  # spread, in logits, of what all volunteers of one galaxy see alike
_LEAST_CHANCE = 0.004

# fmt: off
_ODD_CODES = {"ring": "r", "lens_or_arc": "l", "disturbed": "d", "irregular": "i", "other": "o",
              "merger": "m", "dust_lane": "u"}
_ROUND_CODES = {"completely_round": "r", "in_between": "i", "cigar_shaped": "c"}
_EDGE_BULGE_CODES = {"rounded_bulge": "r", "boxy_bulge": "b", "no_edge_on_bulge": "n"}
_BULGE_CODES = {"no_bulge": "d", "just_noticeable_bulge": "c", "obvious_bulge": "b", "dominant_bulge": "a"}
_ARM_CODES = {"one_arm": "1", "two_arms": "2", "three_arms": "3", "four_arms": "4",
              "more_than_four_arms": "+", "cant_tell_arms": "?"}
_WINDING_CODES = {"tight_arms": "t", "medium_arms": "m", "loose_arms": "l"}

# Middles of what volunteers mean by each answer.
_TYPICAL_Q = {"completely_round": 0.98, "in_between": 0.62, "cigar_shaped": 0.26}
_TYPICAL_PITCH_DEG = {"tight_arms": 12.0, "medium_arms": 20.0, "loose_arms": 29.0}
_TYPICAL_BULGE = {"no_bulge": 0.0, "just_noticeable_bulge": 0.13, "obvious_bulge": 0.38,
                  "dominant_bulge": 0.75}
_ARM_COUNTS = {"one_arm": 1, "two_arms": 2, "three_arms": 3, "four_arms": 4, "more_than_four_arms": 5}
# fmt: on

Columns = dict[str, np.ndarray]
Chances = dict[str, np.ndarray | float]


@dataclass(frozen=True)
class Votes:
    """The answers of the volunteers of n galaxies.

    Attributes
    ----------
    counts : ndarray of int32, shape (n, 37)
    weights : ndarray of float64, shape (n, 37)
        Votes weighted by each volunteer's consistency.
    expected, nearby : ndarray of float64, shape (n, 37)
        Probability of each answer to its question: as seen, and as the nearby twin would be seen.
    classifications : ndarray of int32, shape (n,)
    """

    counts: np.ndarray
    weights: np.ndarray
    expected: np.ndarray
    nearby: np.ndarray
    classifications: np.ndarray

    @property
    def fractions(self) -> np.ndarray:
        """Share of the votes on each answer's question; float64, shape (n, 37), 0 where not asked."""
        return within_question(self.counts)

    @property
    def weighted_fractions(self) -> np.ndarray:
        """Share of the weighted votes; float64, shape (n, 37), 0 where not asked."""
        return within_question(self.weights)

    @property
    def debiased(self) -> np.ndarray:
        """Weighted fractions moved to what the nearby twin would get; float64, shape (n, 37)."""
        return within_question(self.weighted_fractions * self.nearby / self.expected)

    @property
    def clean(self) -> np.ndarray:
        """1 where an answer is debiased to 0.8 and its question has 20 votes (Willett et al. 2013)."""
        asked = _question_totals(self.counts)
        return ((self.debiased >= _CLEAN_FRACTION) & (asked >= _CLEAN_VOTES)).astype(np.int32)


def cast_votes(truth: pa.Table, n_volunteers: tuple[int, int], seed: int) -> Votes:
    """Let volunteers classify galaxies.

    Parameters
    ----------
    truth : Table
        From `galray.data.mock.draw_truth`.
    n_volunteers : tuple of int
        Least and most volunteers per galaxy.
    seed : int
        A galaxy's votes depend on this and on its id alone, not on the rest of the table.

    Returns
    -------
    Votes
    """
    columns = {name: truth[name].to_numpy() for name in truth.column_names}
    seen = answer_probabilities(columns, seeing=1.0)
    nearby = answer_probabilities(columns, seeing=NEARBY_SEEING)
    panels = [_panel(seed, galaxy_id, n_volunteers) for galaxy_id in columns["galaxy_id"]]
    counts, weights = _walk_tree(seen, panels)
    size = np.array([len(panel.skill) for panel in panels], np.int32)
    return Votes(counts, weights, seen, nearby, size)


def within_question(values: np.ndarray) -> np.ndarray:
    """Scale answers, shape (n, 37), to sum to one over each question; 0 where a question has none."""
    totals = _question_totals(values)
    return np.divide(values, totals, out=np.zeros(values.shape), where=totals > 0)


def class_code(debiased: np.ndarray) -> str:
    """Return the GZ2 class string of Willett et al. (2013), Section 4.3, from debiased fractions."""
    best = _best_answers(debiased)
    odd = "" if best["odd"] == "not_odd" else f"({_ODD_CODES[best['odd_feature']]})"
    if best["smooth_or_features"] == "star_or_artifact":
        return "A"
    if best["smooth_or_features"] == "smooth":
        return f"E{_ROUND_CODES[best['rounded']]}{odd}"
    if best["edge_on"] == "edge_on":
        return f"Se{_EDGE_BULGE_CODES[best['bulge_shape']]}{odd}"
    bar, bulge = "B" if best["bar"] == "bar" else "", _BULGE_CODES[best["bulge_prominence"]]
    if best["spiral"] == "no_spiral":
        return f"S{bar}{bulge}{odd}"
    return f"S{bar}{bulge}{_ARM_CODES[best['arms_number']]}{_WINDING_CODES[best['arms_winding']]}{odd}"


def _best_answers(debiased: np.ndarray) -> dict[str, str]:
    best: dict[str, tuple[float, str]] = {}
    for value, question, answer in zip(debiased, QUESTION_OF_ANSWER, ANSWERS, strict=True):
        name = DECISION_TREE[question].name
        best[name] = max(best.get(name, (-1.0, "")), (float(value), answer.name))
    return {name: answer for name, (_, answer) in best.items()}


def lane_visibility(t: Columns, seeing: float) -> np.ndarray:
    """Return how plainly a dust lane shows, 0 to 1: its contrast, and the light to see it by."""
    contrast = t["lane_contrast" if seeing == 1.0 else "lane_contrast_nearby"]
    signal = _surface_snr(t)
    return np.where(contrast > 0, expit((contrast - 0.31) / 0.045) * signal / (signal + 1.0), 0.0)


def answer_probabilities(t: Columns, seeing: float) -> np.ndarray:
    """Return the probability of each answer to its question; float64, shape (n, 37).

    Parameters
    ----------
    t : dict of ndarray, shape (n,)
        Columns of the truth table.
    seeing : float
        Factor on the seeing: 1 as observed, less for the nearby twin.
    """
    chances = _weigh_main(t, seeing) | _weigh_disk(t, seeing) | _weigh_bulge(t) | _weigh_odd(t, seeing)
    weights = np.empty((len(t["galaxy_id"]), len(ANSWERS)))
    for name, chance in chances.items():
        weights[:, ANSWER_INDEX[name]] = np.maximum(chance, _LEAST_CHANCE)
    return within_question(weights)


def _weigh_main(t: Columns, seeing: float) -> Chances:
    """Smooth or featured, edge-on or not, and how round."""
    thin, lane = _thinness(t, seeing), lane_visibility(t, seeing)
    features = np.select(
        [_is_disk(t), t["kind"] == "edge_on", t["kind"] == "cigar"],
        [0.12 + 0.83 * _arm_visibility(t, seeing), 0.32 + 0.60 * thin, 0.08 + 0.38 * thin],
        0.05 + 0.12 * lane + 0.5 * t["disturbance"] + 0.15 * (t["shell_strength"] > 0),
    )
    edge_on = thin * np.where(_is_disk(t), 0.5, 1.0)
    return {
        "smooth": 1 - features,
        "features_or_disk": features,
        "star_or_artifact": 0.012,
        "edge_on": edge_on,
        "not_edge_on": 1 - edge_on,
        **_nearness(_apparent_q(t, seeing), _TYPICAL_Q, 0.15),
    }


def _weigh_disk(t: Columns, seeing: float) -> Chances:
    """Bar, arms, how many and how tightly wound."""
    detail = _detail(t, seeing)
    bar = np.where(t["bar_strength"] > 0, 0.15 + 0.75 * detail, 0.12)
    spiral = 0.1 + 0.85 * _arm_visibility(t, seeing)
    counted = {
        name: detail * np.where(t["arm_count"] == count, 0.75, 0.06) for name, count in _ARM_COUNTS.items()
    }
    return {
        "bar": bar,
        "no_bar": 1 - bar,
        "spiral": spiral,
        "no_spiral": 1 - spiral,
        **_nearness(t["arm_pitch_deg"], _TYPICAL_PITCH_DEG, 6.0),
        **counted,
        "cant_tell_arms": 0.95 - 0.75 * detail,
    }


def _weigh_bulge(t: Columns) -> Chances:
    smooth = (t["kind"] == "early_type") | (t["kind"] == "cigar")
    flat = np.clip(1 - t["bulge_fraction"] / 0.18, 0.03, 1)
    return {
        **_nearness(np.where(smooth, 0.75, t["bulge_fraction"]), _TYPICAL_BULGE, 0.13),
        "rounded_bulge": 0.9 * (1 - flat),
        "boxy_bulge": 0.12 * (1 - flat),
        "no_edge_on_bulge": flat,
    }


def _weigh_odd(t: Columns, seeing: float) -> Chances:
    """Oddity: how much of each odd thing is seen decides both whether and what."""
    detail = _detail(t, seeing)
    # An edge-on disk's lane belongs there: few call it odd.
    lane = lane_visibility(t, seeing) * np.where(t["kind"] == "edge_on", 0.22, 0.85)
    ring = detail * (0.5 * (t["ring_strength"] > 0) + 0.3 * (t["shell_strength"] > 0))
    disturbed = np.clip(t["disturbance"] / 0.25, 0, 1) * (0.15 + 0.4 * detail)
    merger = np.where(t["neighbour_mag"] > 0, np.where(t["neighbour_is_star"], 0.04, 0.22), 0.0)
    odd = 0.06 + 0.90 * (1 - (1 - lane) * (1 - ring) * (1 - disturbed) * (1 - merger))
    return {
        "odd": odd,
        "not_odd": 1 - odd,
        "ring": 0.012 + ring,
        "lens_or_arc": 0.008,
        "disturbed": 0.015 + 0.6 * disturbed,
        "irregular": 0.012,
        "other": 0.02 + 0.25 * disturbed,
        "merger": 0.015 + merger + 0.3 * disturbed,
        "dust_lane": 0.006 + lane,
    }


def _nearness(value: np.ndarray, typical: dict[str, float], width: float) -> Chances:
    return {name: np.exp(-0.5 * ((value - middle) / width) ** 2) for name, middle in typical.items()}


def _is_disk(t: Columns) -> np.ndarray:
    return (t["kind"] == "spiral") | (t["kind"] == "barred_spiral")


def _arm_visibility(t: Columns, seeing: float) -> np.ndarray:
    return np.where(_is_disk(t), _detail(t, seeing) * np.clip(t["arm_strength"] / 0.3, 0.3, 1.0), 0.0)


def _thinness(t: Columns, seeing: float) -> np.ndarray:
    return expit((0.30 - _apparent_q(t, seeing)) / 0.045)


def _surface_snr(t: Columns) -> np.ndarray:
    """Mean signal to sky noise of a pixel inside the half-light ellipse, in r."""
    area_px = np.pi * t["q"] * t["r_half_arcsec"] ** 2 / SKY_NOISE_SCALE_ARCSEC**2
    return 0.5 * flux_of(t["mag_r"]) / area_px / SKY_NOISE[1]


def _detail(t: Columns, seeing: float) -> np.ndarray:
    """How much structure inside a galaxy can be made out, 0 to 1."""
    resolved = np.log2(t["r_half_arcsec"] / (seeing * t["psf_fwhm_arcsec"]))
    return expit((resolved - 0.8) / 0.35) * expit((np.log10(_surface_snr(t)) - 0.6) / 0.25)


def _apparent_q(t: Columns, seeing: float) -> np.ndarray:
    """Axis ratio after the seeing has rounded the galaxy."""
    blur = seeing * t["psf_fwhm_arcsec"] / 2.355
    return np.sqrt((t["q"] ** 2 * t["r_half_arcsec"] ** 2 + blur**2) / (t["r_half_arcsec"] ** 2 + blur**2))


@dataclass(frozen=True)
class _Panel:
    """The volunteers of one galaxy: their skill, their luck, and what they all see in it."""

    skill: np.ndarray
    luck: np.ndarray
    opinion: np.ndarray


def _panel(seed: int, galaxy_id: int, n_volunteers: tuple[int, int]) -> _Panel:
    rng = np.random.default_rng((seed, int(galaxy_id)))
    size = rng.integers(n_volunteers[0], n_volunteers[1] + 1)
    opinion = np.exp(rng.normal(0, _SHARED_OPINION, len(ANSWERS)))
    return _Panel(rng.beta(9, 0.6, size), rng.random((size, _MAX_STEPS)), opinion)


def _walk_tree(probabilities: np.ndarray, panels: list[_Panel]) -> tuple[np.ndarray, np.ndarray]:
    """Send every volunteer down the tree; return counts and weighted counts, shape (n, 37)."""
    galaxy = np.repeat(np.arange(len(panels)), [len(panel.skill) for panel in panels])
    skill = np.concatenate([panel.skill for panel in panels])
    luck = np.concatenate([panel.luck for panel in panels])
    shared = within_question(probabilities * np.stack([panel.opinion for panel in panels]))
    weight = np.minimum(1.0, skill / 0.85)
    counts = np.zeros(shared.shape, np.int32)
    weights = np.zeros(shared.shape)
    asked = np.zeros(len(galaxy), np.int64)
    for step in range(_MAX_STEPS):
        for q in np.unique(asked[asked >= 0]):
            who = np.flatnonzero(asked == q)
            answers = np.flatnonzero(q == QUESTION_OF_ANSWER)
            guess = 1 / len(answers)
            chance = skill[who, None] * shared[np.ix_(galaxy[who], answers)] + (1 - skill[who, None]) * guess
            picked = (luck[who, step, None] > np.cumsum(chance, axis=1)[:, :-1]).sum(axis=1)
            np.add.at(counts, (galaxy[who], answers[picked]), 1)
            np.add.at(weights, (galaxy[who], answers[picked]), weight[who])
            asked[who] = -2 - _NEXT_QUESTION[answers[picked]]
        asked = np.where(asked <= -2, -2 - asked, -1)
    return counts, weights


_NEXT_QUESTION = np.array([QUESTION_INDEX[a.leads_to] if a.leads_to else -1 for a in ANSWERS], dtype=np.int64)


def _question_totals(values: np.ndarray) -> np.ndarray:
    starts = np.cumsum([0] + [len(question.answers) for question in DECISION_TREE[:-1]])
    return np.add.reduceat(values, starts, axis=1)[:, QUESTION_OF_ANSWER]
