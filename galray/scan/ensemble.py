"""What gives a scan's scores, as one: classifiers, and the turns that each sees; its tuning."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from galray.classifier import network
from galray.classifier.calibration import shift_prior
from galray.classifier.decision import Decision
from galray.classifier.judging import of_split, read_predictions, tune
from galray.classifier.network import ClassifierConfig
from galray.core.errors import ConfigError, InputError
from galray.core.storage import Location


@dataclass(frozen=True)
class Ensemble:
    """Published classifiers whose mean probability of a target is the score; often one alone.

    Attributes
    ----------
    classifiers : tuple of Location
        The mean is taken at the prevalence that the first one's probabilities assume.
    settings : tuple of ClassifierConfig
        Theirs.
    turns : bool
        The mean is over the eight symmetries of each image too.
    """

    classifiers: tuple[Location, ...]
    settings: tuple[ClassifierConfig, ...]
    turns: bool = False

    @classmethod
    def read(cls, classifiers: tuple[Location, ...], *, turns: bool = False) -> Ensemble:
        """Read the classifiers' settings.

        Raises
        ------
        InputError
            For what is no published classifier.
        """
        return cls(classifiers, tuple(map(network.published_settings, classifiers)), turns)

    def __str__(self) -> str:
        return " and ".join(classifier.uri for classifier in self.classifiers)

    def check(self, target: str) -> None:
        """Raise ConfigError for a classifier whose scores cannot be averaged with those of the first."""
        first = self.settings[0]
        for classifier, other in zip(self.classifiers[1:], self.settings[1:], strict=True):
            if target not in other.target_names:
                known = ", ".join(other.target_names) or "none"
                raise ConfigError(
                    f"--ensemble {classifier.uri} does not look for {target!r} (its targets: {known}). "
                    "Name classifiers of one target."
                )
            if other.size_px != first.size_px:
                raise ConfigError(
                    f"--ensemble {classifier.uri} takes images of {other.size_px} px, --classifier of "
                    f"{first.size_px}. Name classifiers of one size."
                )

    def tuned(self, own: Decision) -> Decision:
        """Return the first one's decision, of a mean with the threshold and temperature of the mean.

        A mean of several probabilities is drawn towards the middle: neither the threshold nor the
        temperature of one alone is right for it.

        Parameters
        ----------
        own : Decision
            The first one's.

        Raises
        ------
        ConfigError, InputError
            See `judged`.
        """
        if len(self.classifiers) == 1 and not self.turns:
            return own
        return tune(*self.judged(own.target, "validation"), own.target, own.train_prevalence)

    def judged(self, target: str, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Read what the classifiers made, as one, of the galaxies that judge them.

        Parameters
        ----------
        target : str
            What the classifiers were tuned for.
        split : str
            ``validation``, on which thresholds are chosen, or ``test``, which tells what they bring.

        Returns
        -------
        truth : ndarray of int8, shape (n,)
            1, 0, or -1 for unknown.
        score : ndarray of float32, shape (n,)

        Raises
        ------
        ConfigError
            Where one was tuned for another target than the first, or judged on other galaxies.
        InputError
            Where the predictions are missing, or of turned images.
        """
        judged = [self._judged_by(number, target, split) for number in range(len(self.classifiers))]
        for classifier, rows in zip(self.classifiers[1:], judged[1:], strict=True):
            _check_same_galaxies(split, judged[0], rows, self.classifiers[0], classifier)
        score = np.stack([rows["score"].to_numpy() for rows in judged]).mean(axis=0)
        return judged[0]["truth"].to_numpy(), score

    def _judged_by(self, number: int, target: str, split: str) -> pa.Table:
        """Read one's predictions of a split, ordered by ``galaxy_id``, at the prevalence of the first."""
        classifier, settings = self.classifiers[number], self.settings[number]
        if settings.target_names[0] != target:
            raise ConfigError(
                f"{classifier.uri} was tuned for {settings.target_names[0]!r}, so nothing tells a threshold "
                f"of its {target!r}. Name classifiers tuned for one target."
            )
        column = "score_turned" if self.turns else "score"
        rows = of_split(read_predictions(classifier), split).sort_by("galaxy_id")
        if column not in rows.column_names:
            raise InputError(
                f"{classifier.uri} was not judged by turned images (--turns, the default of classify), so "
                "nothing tells a threshold of --turns. Train it again, or leave --turns out."
            )
        score = at_prevalence_of(self.settings[0], settings, target, rows[column].to_numpy())
        return rows.select(["galaxy_id", "truth"]).append_column("score", pa.array(score))


def at_prevalence_of(
    first: ClassifierConfig, settings: ClassifierConfig, target: str, probability: np.ndarray
) -> np.ndarray:
    """Move a classifier's probabilities of a target to the prevalence that those of the first assume.

    Parameters
    ----------
    first, settings : ClassifierConfig
        Of the first classifier, and of the one whose probabilities they are; where either records no
        prevalence, they stay as they are.
    target : str
    probability : ndarray of float32, shape (n,)

    Returns
    -------
    ndarray of float32, shape (n,)
    """
    assumed, wanted = (_prevalence(config, target) for config in (settings, first))
    if assumed and wanted and assumed != wanted:
        return shift_prior(probability, assumed, wanted).astype(np.float32)
    return probability


def _prevalence(config: ClassifierConfig, target: str) -> float | None:
    """Return the share of targets that a classifier's probabilities assume; None where not recorded."""
    return config.prevalence[config.target_names.index(target)] if config.prevalence else None


def _check_same_galaxies(
    split: str, first: pa.Table, other: pa.Table, first_one: Location, other_one: Location
) -> None:
    """Refuse predictions of other galaxies, or of galaxies of which something else was true."""
    where = f"--ensemble {other_one.uri} was judged on other {split} galaxies than {first_one.uri}"
    remedy = "so their mean cannot be tuned. Name classifiers trained on the same --galaxies."
    ids, other_ids = (rows["galaxy_id"].to_numpy() for rows in (first, other))
    if not np.array_equal(ids, other_ids):
        common = len(np.intersect1d(ids, other_ids))
        raise ConfigError(f"{where} ({len(other_ids)} and {len(ids)}, {common} of them the same), {remedy}")
    differ = int((first["truth"].to_numpy() != other["truth"].to_numpy()).sum())
    if differ:
        raise ConfigError(f"{where} (the same, but {differ} of them with another truth), {remedy}")
