"""How a classifier is judged: on real galaxies it never saw, the threshold chosen on validation alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
from matplotlib.figure import Figure

from galray.classifier import metrics
from galray.classifier.decision import Decision
from galray.classifier.metrics import ClassReport
from galray.classifier.network import ClassifierConfig

JUDGED_SPLITS = ("validation", "test")


def of_split(predictions: pa.Table, split: str) -> pa.Table:
    """Return the rows of one split."""
    return predictions.filter(pads.field("split") == split)


def choose_threshold(truth: np.ndarray, score: np.ndarray) -> float:
    """Return the threshold of the best F1; one half where no galaxy of the target can tell."""
    return metrics.threshold_for(truth, score, best_f1=True) if (truth == 1).any() else 0.5


def validation_metrics(predictions: pa.Table, config: ClassifierConfig) -> dict[str, float]:
    """Return what is followed from epoch to epoch, on validation galaxies."""
    chosen = of_split(predictions, "validation")
    classes = _classes(chosen, config)
    followed = {"accuracy": classes.accuracy.value, "macro_f1": classes.macro_f1}
    if not config.targets:
        return followed
    truth, score = _truth_and_score(chosen)
    detection = metrics.completeness_purity(truth, score, choose_threshold(truth, score))
    return followed | {
        "average_precision": metrics.average_precision(truth, score),
        "completeness": detection.completeness.value,
        "purity": detection.purity.value,
        "f1": detection.f1,
    }


def judge(predictions: pa.Table, config: ClassifierConfig) -> tuple[Decision | None, dict[str, Any]]:
    """Choose the threshold on validation galaxies and judge it, on test galaxies too.

    Parameters
    ----------
    predictions : pyarrow.Table
        ``split``, ``morphology``, ``morphology_predicted`` and, of a rare target, ``truth``, ``score``.
    config : ClassifierConfig

    Returns
    -------
    decision : Decision or None
        None where no rare target is looked for.
    report : dict
        By split: counts; of the target completeness, purity, F1 and average precision, of the classes
        accuracy, completeness and purity, with 95% intervals.
    """
    decision = _decide(of_split(predictions, "validation"), config) if config.targets else None
    return decision, {
        split: _judge_split(of_split(predictions, split), decision, config) for split in JUDGED_SPLITS
    }


def _decide(validation: pa.Table, config: ClassifierConfig) -> Decision:
    return Decision(
        config.target_names[0], choose_threshold(*_truth_and_score(validation)), config.prevalence[0]
    )


def _judge_split(rows: pa.Table, decision: Decision | None, config: ClassifierConfig) -> dict[str, Any]:
    classes = _classes(rows, config)
    judged = {"text": str(classes), "galaxies": len(rows), "morphology": classes.as_dict()}
    if decision is None:
        return judged
    truth, score = _truth_and_score(rows)
    detection = metrics.completeness_purity(truth, score, decision.threshold)
    precision = metrics.bootstrapped(metrics.average_precision, truth, score, seed=0)
    return {
        **judged,
        **detection.as_dict(),
        "text": f"{detection}; average precision {precision}",
        "average_precision": precision.as_dict(),
    }


def _classes(rows: pa.Table, config: ClassifierConfig) -> ClassReport:
    return metrics.classification(
        rows["morphology"].to_numpy(), rows["morphology_predicted"].to_numpy(), config.class_names
    )


def _truth_and_score(rows: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    return rows["truth"].to_numpy(), rows["score"].to_numpy()


def curve_figure(predictions: dict[str, pa.Table]) -> Figure:
    """Draw purity against completeness, a line for each set of predictions."""
    figure = Figure(figsize=(5, 4), layout="constrained")
    ax = figure.subplots()
    for name, rows in predictions.items():
        true, false, _ = metrics.completeness_purity_curve(*_truth_and_score(rows))
        positives = int(true[-1])
        if positives:
            selected = np.maximum(true + false, 1)
            ax.plot(
                true / positives, np.where(true + false, true / selected, 1), label=f"{name} ({positives})"
            )
    ax.set(xlabel="completeness", ylabel="purity", xlim=(0, 1), ylim=(0, 1.02))
    if ax.has_data():
        ax.legend(frameon=False)
    return figure
