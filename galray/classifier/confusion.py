"""How well exclusive classes are told apart: the confusion of true and predicted ones, and what follows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from galray.classifier.detection import average_precision, f1_of
from galray.core.errors import InputError
from galray.core.intervals import Rate, flat, rates_of


@dataclass(frozen=True)
class ClassReport:
    """How well exclusive classes are told apart.

    Attributes
    ----------
    classes : tuple of str
    confusion : ndarray of int64, shape (classes, classes)
        Rows are the true class, columns the predicted one.
    """

    classes: tuple[str, ...]
    confusion: np.ndarray

    @property
    def accuracy(self) -> Rate:
        """Share of all galaxies that is classed rightly."""
        return Rate(int(self.confusion.trace()), int(self.confusion.sum()))

    @property
    def completeness(self) -> tuple[Rate, ...]:
        """Of each class, the share that is recognised."""
        return rates_of(self.confusion.diagonal(), self.confusion.sum(axis=1))

    @property
    def purity(self) -> tuple[Rate, ...]:
        """Of those put into each class, the share that belongs there."""
        return rates_of(self.confusion.diagonal(), self.confusion.sum(axis=0))

    @property
    def f1(self) -> np.ndarray:
        """F1 of each class; NaN for a class that neither occurs nor is predicted."""
        hits = self.confusion.diagonal()
        missed, false = self.confusion.sum(axis=1) - hits, self.confusion.sum(axis=0) - hits
        return np.array([f1_of(*counts) for counts in zip(hits, false, missed, strict=True)])

    @property
    def macro_f1(self) -> float:
        """Mean of `f1` over the classes that have one."""
        return macro_f1_of(self.confusion)

    def __str__(self) -> str:
        width = max(map(len, self.classes))
        rows = [
            f"{name:<{width}}  completeness {completeness}, purity {purity}, F1 {f1:.2f}"
            for name, completeness, purity, f1 in zip(
                self.classes, self.completeness, self.purity, self.f1, strict=True
            )
        ]
        return "\n".join([self.headline, *rows])

    @property
    def headline(self) -> str:
        """Accuracy and macro F1, in words."""
        return f"accuracy {self.accuracy}, macro F1 {self.macro_f1:.3f}"

    def as_dict(self) -> dict[str, float]:
        """Return the figures under flat names, such as ``spiral_purity_low``, for tracking."""
        figures = {"macro_f1": self.macro_f1, **flat({"accuracy": self.accuracy})}
        for name, completeness, purity, f1 in zip(
            self.classes, self.completeness, self.purity, self.f1, strict=True
        ):
            rates = {f"{name}_completeness": completeness, f"{name}_purity": purity}
            figures |= {**flat(rates), f"{name}_f1": float(f1)}
        return figures


def classification(truth: np.ndarray, predicted: np.ndarray, classes: Sequence[str]) -> ClassReport:
    """Compare predicted with true classes.

    Parameters
    ----------
    truth : ndarray of int, shape (n,)
        Class index, or -1 (unknown, left out).
    predicted : ndarray, shape (n,) of int or (n, classes) of float
        Class index, or the classes' probabilities, of which the highest counts.
    classes : sequence of str
        Names, in the order of the indices.
    """
    truth, predicted = np.asarray(truth), np.asarray(predicted)
    if predicted.ndim == 2:
        predicted = predicted.argmax(axis=1)
    if truth.shape != predicted.shape:
        raise InputError(
            f"{len(truth)} true and {len(predicted)} predicted classes; give one each per galaxy"
        )
    return ClassReport(tuple(classes), confusion(truth, predicted, len(classes)))


def confusion(
    truth: np.ndarray, predicted: np.ndarray, classes: int, weights: np.ndarray | None = None
) -> np.ndarray:
    """Return how many galaxies of each true class (rows) were taken for each class (columns).

    Parameters
    ----------
    truth : ndarray of int, shape (n,)
        Class index, or -1 (unknown, left out).
    predicted : ndarray of int, shape (n,)
    classes : int
    weights : ndarray of float, shape (n,), optional
        How often each galaxy counts: once where none are given.
    """
    known = truth >= 0
    cells = truth[known].astype(np.int64) * classes + predicted[known]
    counted = None if weights is None else weights[known]
    return np.bincount(cells, counted, minlength=classes**2).reshape(classes, classes)


def macro_f1_of(confusion: np.ndarray) -> float:
    """Return the mean F1 of the classes that occur or are predicted; NaN where none is.

    Parameters
    ----------
    confusion : ndarray, shape (classes, classes)
        Counts, weighted or not; rows are the true class, columns the predicted one.
    """
    total = confusion.sum(axis=0) + confusion.sum(axis=1)
    seen = total > 0
    return float((2 * confusion.diagonal()[seen] / total[seen]).mean()) if seen.any() else np.nan


def macro_f1(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Return the mean F1 of the classes, as `ClassReport.macro_f1` has it, fast enough to resample."""
    return macro_f1_of(
        confusion(truth, predicted, int(max(truth.max(initial=0), predicted.max(initial=0))) + 1)
    )


def macro_average_precision(truth: np.ndarray, probability: np.ndarray) -> float:
    """Return the mean area under the classes' completeness-purity curves, each against all others.

    Parameters
    ----------
    truth : ndarray of int, shape (n,)
        Class index, or -1 (unknown, left out).
    probability : ndarray of float, shape (n, classes)

    Returns
    -------
    float
        Over the classes that occur; NaN where none does.
    """
    areas = [
        average_precision(one_against_others(truth, k), probability[:, k])
        for k in range(probability.shape[1])
        if (truth == k).any()
    ]
    return float(np.mean(areas)) if areas else np.nan


def one_against_others(truth: np.ndarray, index: int) -> np.ndarray:
    """Return whether each galaxy is of one class: 1, 0, or -1 where its class is unknown."""
    return np.where(truth < 0, -1, truth == index).astype(np.int8)
