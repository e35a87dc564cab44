"""What a classifier is worth, as figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from galray.classifier.calibration import Reliability
from galray.classifier.confusion import ClassReport, one_against_others
from galray.classifier.detection import completeness_purity_curve
from galray.core.pictures import blank_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def curve_figure(predictions: Mapping[str, pa.Table]) -> Figure:
    """Draw purity against completeness of the target, a line for each table of ``truth`` and ``score``."""
    return _curves(
        {name: (rows["truth"].to_numpy(), rows["score"].to_numpy()) for name, rows in predictions.items()}
    )


def class_curve_figure(truth: np.ndarray, probability: np.ndarray, classes: Sequence[str]) -> Figure:
    """Draw purity against completeness of each class among all others.

    Parameters
    ----------
    truth : ndarray of int, shape (n,)
        Class index, or -1.
    probability : ndarray of float, shape (n, classes)
    classes : sequence of str
    """
    return _curves(
        {
            name.replace("_", " "): (one_against_others(truth, k), probability[:, k])
            for k, name in enumerate(classes)
        }
    )


def _curves(scored: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
    figure = blank_figure(5, 4)
    ax = figure.subplots()
    for name, (truth, score) in scored.items():
        true, false, _ = completeness_purity_curve(truth, score)
        positives = int(true[-1])
        if positives:
            selected = true + false
            purity = np.where(selected, true / np.maximum(selected, 1), 1)
            ax.plot(true / positives, purity, label=f"{name} ({positives})")
    ax.set(xlabel="completeness", ylabel="purity", xlim=(0, 1), ylim=(0, 1.02))
    if ax.has_data():
        ax.legend(frameon=False)
    return figure


def confusion_figure(report: ClassReport) -> Figure:
    """Draw what galaxies of each class are taken for: shares of a row, and counts."""
    counts, names = report.confusion, [name.replace("_", " ") for name in report.classes]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure = blank_figure(5, 4.4)
    ax = figure.subplots()
    ax.imshow(shares, cmap="Greys", vmin=0, vmax=1)
    for (row, column), share in np.ndenumerate(shares):
        colour = "white" if share > 0.6 else "black"
        text = f"{share:.2f}\n({counts[row, column]})"
        ax.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
    ax.set_xticks(range(len(names)), names, rotation=30, ha="right", fontsize=8)
    ax.set_yticks(range(len(names)), names, fontsize=8)
    ax.set(xlabel="the classifier sees", ylabel="true")
    return figure


def reliability_figure(measured: Mapping[str, Reliability]) -> Figure:
    """Draw the share of true ones against stated probabilities, a line with intervals for each name."""
    figure = blank_figure(5, 4)
    ax = figure.subplots()
    ax.plot([0, 1], [0, 1], color="grey", linewidth=0.8)
    for name, found in measured.items():
        bins = [i for i, rate in enumerate(found.observed) if rate.total]
        value, low, high = (
            np.array([getattr(found.observed[i], part) for i in bins]) for part in ("value", "low", "high")
        )
        lengths = np.maximum([value - low, high - value], 0)  # rounding makes some of them -1e-17
        label = f"{name} (ECE {found.ece:.3f})"
        ax.errorbar(found.stated[bins], value, lengths, marker="o", capsize=2, label=label)
    ax.set(xlabel="probability stated", ylabel="share observed", xlim=(0, 1), ylim=(0, 1))
    ax.legend(frameon=False)
    return figure
