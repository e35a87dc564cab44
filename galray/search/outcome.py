"""What a study found in one setting: each method, and the best augmented one against the best baseline."""

from __future__ import annotations

from dataclasses import dataclass

from galray.core.intervals import Estimate
from galray.search.comparison import (
    Found,
    Judged,
    Statistic,
    average_precision,
    best_of,
    found,
    found_at_purity,
    macro_f1,
    paired_difference,
)
from galray.search.experiment import StudyConfig
from galray.search.methods import METHODS
from galray.search.ranking import over_seeds
from galray.search.settings import Setting

JudgedBy = dict[str, list[Judged]]


@dataclass(frozen=True)
class Outcome:
    """One setting of a study.

    Attributes
    ----------
    setting : Setting
    judged : dict of str to Found
        Each method on test galaxies.
    baseline, augmented : str
        The best of either kind, chosen on validation galaxies; empty where none could learn.
    difference : Estimate or None
        The augmented one's main figure - the baseline's, on test galaxies, paired.
    found : dict of str to Estimate
        Of a rare target: how many each method finds at the purity asked for.
    """

    setting: Setting
    judged: dict[str, Found]
    baseline: str
    augmented: str
    difference: Estimate | None
    found: dict[str, Estimate]


def main_figure(config: StudyConfig) -> Statistic:
    """Return the figure by which methods are compared: of a rare target average precision, else macro F1."""
    return average_precision if config.classify.target else macro_f1


def outcome(config: StudyConfig, setting: Setting, validation: JudgedBy, test: JudgedBy) -> Outcome:
    """Choose the best of either kind on validation galaxies, and compare the two on test galaxies."""
    statistic = main_figure(config)
    chosen = [_best(validation, statistic, augmented=augmented) for augmented in (False, True)]
    baseline, augmented = chosen
    difference = paired_difference(statistic, test[augmented], test[baseline]) if all(chosen) else None
    counted = test if config.classify.target else {}
    return Outcome(
        setting,
        {name: found(statistic, of_method) for name, of_method in test.items()},
        baseline,
        augmented,
        difference,
        {
            name: over_seeds([found_at_purity(one, config.least_purity) for one in of_method])
            for name, of_method in counted.items()
        },
    )


def _best(validation: JudgedBy, statistic: Statistic, *, augmented: bool) -> str:
    """Return the best method of one kind; an empty name where there is none."""
    kind = {name: of for name, of in validation.items() if METHODS[name].augmented == augmented}
    return best_of(kind, statistic) if kind else ""
