"""What makes a candidate: the score from which on a source is one."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from galray.classifier.decision import Decision
from galray.classifier.detection import threshold_at_prevalence, threshold_for
from galray.core.config import require
from galray.core.errors import ConfigError, InputError, nearest
from galray.scan.ensemble import Ensemble


@dataclass(frozen=True)
class Aim:
    """What the list of candidates should be; give one at most."""

    threshold: float | None = None
    """Lowest score of a candidate."""
    purity: float | None = None
    """Expected share of true ones in the list, at the survey's prevalence: the longest list so pure."""
    completeness: float | None = None
    """Share of the survey's true ones to find: the highest threshold that found so many in validation."""
    number: int | None = None
    """Length of the list: the best so many, whatever they score."""

    def __post_init__(self) -> None:
        given = [f"--aim.{name}" for name, value in asdict(self).items() if value is not None]
        require(len(given) <= 1, f"{' and '.join(given)} contradict each other; give one.")
        require(
            self.threshold is None or 0 <= self.threshold <= 1,
            f"--aim.threshold {self.threshold} is not in [0, 1].",
        )
        for name in ("purity", "completeness"):
            share = getattr(self, name)
            require(share is None or 0 < share <= 1, f"--aim.{name} {share} is not in (0, 1].")
        require(self.number is None or self.number >= 1, f"--aim.number is {self.number}; give at least 1.")


def decide(aim: Aim, target: str, survey_prevalence: float | None, ensemble: Ensemble) -> Decision:
    """Return what is looked for, and from which score on.

    Parameters
    ----------
    aim : Aim
    target : str
        Empty for the one that the first classifier was tuned for.
    survey_prevalence : float or None
        Needed where the aim is a purity.
    ensemble : Ensemble
        Of classifiers published with their predictions of validation galaxies.

    Raises
    ------
    ConfigError
        For a target that a classifier does not know, or one that the first was not tuned for without a
        threshold or number; for several classifiers that cannot be averaged or tuned as one.
    InputError
        Where no threshold serves the aim on the validation galaxies.
    """
    own, settings = Decision.read(ensemble.classifiers[0]), ensemble.settings[0]
    target = target or own.target
    names = settings.target_names
    if target not in names:
        raise ConfigError(
            f"The classifier knows no target {target!r}{nearest(target, names)}; it has {', '.join(names)}."
        )
    ensemble.check(target)
    threshold = 0.0 if aim.number else aim.threshold
    if target == own.target:
        tuned = ensemble.tuned(own)
        if threshold is None:
            threshold = _from_validation(aim, survey_prevalence, ensemble, target)
        return replace(tuned, threshold=tuned.threshold if threshold is None else threshold)
    if threshold is None or not settings.prevalence:
        raise ConfigError(
            f"The classifier was tuned for {own.target!r}; {target!r} needs an "
            "--aim.threshold or --aim.number."
        )
    return Decision(target, threshold, settings.prevalence[names.index(target)])


def _from_validation(
    aim: Aim, survey_prevalence: float | None, ensemble: Ensemble, target: str
) -> float | None:
    if aim.completeness is not None:
        return threshold_for(*ensemble.judged(target, "validation"), completeness=aim.completeness)
    if aim.purity is None or survey_prevalence is None:
        return None
    truth, score = ensemble.judged(target, "validation")
    threshold = threshold_at_prevalence(truth, score, survey_prevalence, aim.purity)
    if threshold > 1:
        raise InputError(
            f"No threshold of {ensemble} is {aim.purity:g} pure at a prevalence of "
            f"{survey_prevalence:g}, "
            f"on {(truth == 1).sum()} true and {(truth == 0).sum()} other validation galaxies. "
            "Lower --aim.purity, or give --aim.number."
        )
    return threshold
