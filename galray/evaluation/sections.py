"""What a fidelity report says: findings put into words, tables and verdicts."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from galray.core.intervals import Estimate, Rate
from galray.evaluation.compare import Brightness, Comparison, Findings, NearCopies
from galray.evaluation.morphometry import MORPHOMETRY, PHOTOMETRY
from galray.evaluation.report import Picture, Section, Verdict, Word

# What galray asks of its own denoisers.
CONSISTENCY_GOAL = 0.9
BRIGHTNESS_GOALS = {"mean": 0.02, "percentile_5": 0.05, "percentile_95": 0.05}

BRIGHTNESS_NAMES = {"mean": "mean", "percentile_5": "5th percentile", "percentile_95": "95th percentile"}
_MEASURES = {
    "frechet_distance": "Fréchet distance",
    "kernel_distance_x1000": "kernel distance (KID) × 1000",
    "precision": "precision",
    "recall": "recall",
}
_MEANING = PHOTOMETRY | MORPHOMETRY
_SYMBOLS = {"g_r": "g − r", "r_i": "r − i", "gini": "Gini", "m20": "M20"}
_NOTHING = "–"

_CONSISTENCY = """
How often the classifier, which learnt from real galaxies alone, sees the class that was asked for, beside
its accuracy on real {split} galaxies of that class. Shares with 95% Wilson intervals and counts. The
first row pools all classes for the shares; its ratio is that of the means over classes.{unjudged}
"""
_DRAWS = """
Found and floor are medians over {draws} random draws, with the central 95% of them in brackets. In each,
{per_draw:,} synthetic galaxies stand against {per_draw:,} {split} galaxies of the same classes (found),
and those against as many other {split} galaxies (floor): the floor is what a perfect painter would reach.
"""
_FEATURES = """
In the features of the classifier's last layer but one. {over_draws} Precision is the share of synthetic
galaxies within the real manifold (realism), recall the share of real galaxies within the synthetic one
(diversity).
"""
_PHYSICAL = """
Wasserstein distances, in standard deviations of the real quantity. {over_draws} Shapes were measured by
statmorph in a random subset, {per_shape_draw:,} galaxies on either side of a draw; {failures}.
"""
_BRIGHTNESS = """
Relative difference, synthetic less real, of the mean pixel value of galaxies of one kind: of its mean and
of its 5th and 95th percentile over galaxies, with 95% bootstrap intervals. The goals are {mean:.0%},
{percentile_5:.0%} and {percentile_95:.0%}. The floor is the same difference of the means for the training
galaxies, which a perfect painter would reach.
"""
_BRIGHTNESS_LEARNT = """
The same beside the training galaxies. These are many more, so that less is left to chance, and a painter
that has copied them would do well here: what it copies is said below.
"""
_COPIES = """
The nearest of {training:,} training galaxies to each synthetic one, and to each of as many {split}
galaxies of the same classes, which no model has seen. A near-copy lies within the distance that
{quantile:.1%} of the held-out galaxies stay within. In features the distance is Euclidean; in pixels it
is the root mean square difference at {thumbnail_px} px, where black is 0 and white 1, over all turns and
mirrorings.
"""


def verdicts(findings: Findings) -> list[Verdict]:
    """Hold the findings against galray's goals."""
    brightness = [_brightness_verdict(findings, key, goal) for key, goal in BRIGHTNESS_GOALS.items()]
    copies = [_copies_verdict(name, found) for name, found in findings.copies.items()]
    return [_consistency_verdict(findings.consistency[0].ratio), *brightness, *copies]


def _consistency_verdict(ratio: Estimate) -> Verdict:
    asked = f"consistency at least {CONSISTENCY_GOAL:.0%} of the accuracy on real galaxies"
    if np.isnan(ratio.value):
        return Verdict(asked, _NOTHING, "not measured")
    if ratio.value >= CONSISTENCY_GOAL:
        return Verdict(asked, _percent(ratio), "reached")
    return Verdict(asked, _percent(ratio), "missed" if ratio.high < CONSISTENCY_GOAL else "undecided")


def _brightness_verdict(findings: Findings, key: str, goal: float) -> Verdict:
    """Judge the kind that does worst: one that misses the goal beyond its interval, or else is farthest."""
    asked = f"{BRIGHTNESS_NAMES[key]} of brightness within {goal:.0%} of the real one, for every kind"
    differences = {row.name: getattr(row, key) for row in findings.brightness}
    if not differences:
        return Verdict(asked, _NOTHING, "not measured")
    words: dict[str, Word] = {kind: _within(difference, goal) for kind, difference in differences.items()}
    worst = max(differences, key=lambda kind: (words[kind] == "missed", abs(differences[kind].value)))
    found = f"{_percent(differences[worst], sign=True)} for {_spaced(worst)}, the worst of {len(words)}"
    return Verdict(asked, found, words[worst])


def _within(difference: Estimate, goal: float) -> Word:
    if abs(difference.value) <= goal:
        return "reached"
    return "missed" if difference.low > goal or difference.high < -goal else "undecided"


def _copies_verdict(name: str, found: NearCopies) -> Verdict:
    asked = f"near-copies in {name} no more frequent than among held-out real galaxies"
    if not found.synthetic.total:
        return Verdict(asked, _NOTHING, "not measured")
    told = f"{_percent(found.synthetic)} against {_percent(found.held_out)}"
    if found.synthetic.value <= found.held_out.value:
        return Verdict(asked, told, "reached")
    return Verdict(asked, told, "missed" if found.exceeds else "undecided")


def sections(
    findings: Findings, pictures: Mapping[str, Picture], *, split: str, draws: int, thumbnail_px: int
) -> list[Section]:
    """Return the report's sections; each takes the pictures that carry its name."""
    counts = findings.counts
    over_draws = _text(_DRAWS, draws=draws, per_draw=counts["per_draw"], split=split)
    return [
        Section("Galaxies", "Chosen by the seed, not by score.", pictures=_of(pictures, "grid")),
        _consistency_section(findings, pictures, split),
        Section(
            "Realism and diversity",
            _text(_FEATURES, over_draws=over_draws),
            ("", "found", "floor"),
            [(_MEASURES[name], *_pair(row)) for name, row in findings.features.items()],
            _of(pictures, "features"),
        ),
        _physical_section(findings, pictures, over_draws),
        _brightness_section(findings, pictures),
        _brightness_learnt_section(findings),
        _copies_section(findings, pictures, split, thumbnail_px),
    ]


def _consistency_section(findings: Findings, pictures: Mapping[str, Picture], split: str) -> Section:
    left_out = {kind: findings.counts[f"unjudged.{kind}"] for kind in ("real", "synthetic")}
    told = ", ".join(f"{count:,} {kind}" for kind, count in left_out.items() if count)
    unjudged = f" Of no class that the classifier knows: {told} galaxies." if told else ""
    rows = [
        (_spaced(row.name), _percent(row.synthetic), _percent(row.real), _percent(row.ratio))
        for row in findings.consistency
    ]
    text = _text(_CONSISTENCY, split=split, unjudged=unjudged)
    columns = ("", "synthetic", "real", "ratio")
    return Section("Consistency", text, columns, rows, _of(pictures, "confusion"))


def _physical_section(findings: Findings, pictures: Mapping[str, Picture], over_draws: str) -> Section:
    per_draw, failures = findings.counts["per_shape_draw"], _failures(findings.counts)
    text = _text(_PHYSICAL, over_draws=over_draws, per_shape_draw=per_draw, failures=failures)
    rows = [
        (_SYMBOLS.get(name, name), *_pair(row), _MEANING[name]) for name, row in findings.physical.items()
    ]
    columns = ("", "found", "floor", "quantity")
    return Section("Light, colour and shape", text, columns, rows, _of(pictures, "quantities"))


def _brightness_section(findings: Findings, pictures: Mapping[str, Picture]) -> Section:
    floors = {row.name: _percent(row.mean, sign=True) for row in findings.brightness_floor}
    columns = (*_brightness_columns("real"), f"floor of the {BRIGHTNESS_NAMES['mean']}")
    rows = [(*_brightness_row(row), floors.get(row.name, _NOTHING)) for row in findings.brightness]
    text = _text(_BRIGHTNESS, **BRIGHTNESS_GOALS)
    return Section("Brightness by kind", text, columns, rows, _of(pictures, "brightness"))


def _brightness_learnt_section(findings: Findings) -> Section:
    rows = [_brightness_row(row) for row in findings.brightness_learnt]
    title = "Brightness by kind, beside what was learnt from"
    return Section(title, _text(_BRIGHTNESS_LEARNT), _brightness_columns("training"), rows)


def _brightness_columns(against: str) -> tuple[str, ...]:
    return ("", "synthetic", against, *BRIGHTNESS_NAMES.values())


def _brightness_row(row: Brightness) -> tuple[str, ...]:
    differences = (_percent(getattr(row, key), sign=True) for key in BRIGHTNESS_GOALS)
    return (_spaced(row.name), f"{row.count:,}", f"{row.real:,}", *differences)


def _copies_section(
    findings: Findings, pictures: Mapping[str, Picture], split: str, thumbnail_px: int
) -> Section:
    quantile = max((found.quantile for found in findings.copies.values()), default=0.0)
    text = _text(
        _COPIES,
        training=findings.counts["training"],
        split=split,
        quantile=quantile,
        thumbnail_px=thumbnail_px,
    )
    rows = [
        (name, f"{found.threshold:.4g}", _percent(found.synthetic), _percent(found.held_out))
        for name, found in findings.copies.items()
    ]
    columns = ("distance in", "near within", "of synthetic", "of held-out real")
    return Section("Memorisation", text, columns, rows, _of(pictures, "copies", "closest"))


def _of(pictures: Mapping[str, Picture], *names: str) -> list[Picture]:
    return [pictures[name] for name in names if name in pictures]


def _failures(counts: Mapping[str, int]) -> str:
    """Say how many galaxies have no shape, and why."""
    told = []
    for kind in ("real", "synthetic"):
        prefix = f"unmeasured.{kind}."
        reasons = [f"{n} {key.removeprefix(prefix)}" for key, n in counts.items() if key.startswith(prefix)]
        why = f" (not: {', '.join(reasons)})" if reasons else ""
        told.append(f"{counts[f'measured.{kind}']} of {counts[f'tried.{kind}']} {kind} ones succeeded{why}")
    return ", ".join(told)


def _text(template: str, **values: object) -> str:
    return " ".join(template.format(**values).split())


def _spaced(name: str) -> str:
    return name.replace("_", " ")


def _percent(share: Rate | Estimate, sign: bool = False) -> str:
    """Write a share or ratio in percent with its interval, and its counts where it has them."""
    if np.isnan(share.value):
        return _NOTHING
    flag = "+" if sign else ""
    value, low, high = (f"{100 * number:{flag}.1f}" for number in (share.value, share.low, share.high))
    counts = f" ({share.count:,}/{share.total:,})" if isinstance(share, Rate) else ""
    return f"{value}% [{low}, {high}]{counts}"


def _pair(row: Comparison) -> tuple[str, str]:
    return _number(row.found), _number(row.floor)


def _number(estimate: Estimate) -> str:
    value, low, high = estimate.value, estimate.low, estimate.high
    return _NOTHING if np.isnan(value) else f"{value:.3g} [{low:.3g}, {high:.3g}]"
