"""How a classifier is judged: on real galaxies it never saw, the threshold chosen on validation alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from galray.classifier.calibration import (
    calibration_error,
    fit_class_temperature,
    fit_temperature,
    reliability,
    shift_class_priors,
    shift_prior,
)
from galray.classifier.confusion import (
    ClassReport,
    classification,
    macro_average_precision,
    macro_f1,
    one_against_others,
)
from galray.classifier.decision import Decision
from galray.classifier.detection import average_precision, completeness_purity, shares_at, threshold_for
from galray.classifier.figures import class_curve_figure, confusion_figure, curve_figure, reliability_figure
from galray.classifier.losses import balance
from galray.classifier.network import ClassifierConfig, Probabilities, Shares
from galray.classifier.targets import UNKNOWN
from galray.core.intervals import bootstrapped, bootstrapped_each
from galray.core.schema import DECISION_TREE, QUESTION_OF_ANSWER
from galray.core.storage import Location
from galray.data.lineage import JUDGED_SPLITS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PREDICTIONS_FILE = "predictions.parquet"
_TURNED = "morphology_turned"
_HALFWAY = "morphology_halfway"
_HALFWAY_EXPONENT = 0.5
PURITIES = (0.6, 0.9)
COMPLETENESSES = (0.6, 0.9)
_RESAMPLES = 200
_VOLUNTEERS = 5  # of fewer, fractions say little


def read_predictions(classifier: Location) -> pa.Table:
    """Read what a published classifier made of the galaxies that judge it."""
    return pq.read_table(pa.BufferReader((classifier / PREDICTIONS_FILE).read_bytes()))


def of_split(predictions: pa.Table, split: str) -> pa.Table:
    """Return the rows of one split."""
    return predictions.filter(pads.field("split") == split)


def choose_threshold(truth: np.ndarray, score: np.ndarray) -> float:
    """Return the threshold of the best F1; one half where no galaxy of the target can tell."""
    return threshold_for(truth, score, best_f1=True) if (truth == 1).any() else 0.5


def tune(truth: np.ndarray, score: np.ndarray, target: str, prevalence: float) -> Decision:
    """Choose a rare target's threshold and temperature on validation galaxies.

    Parameters
    ----------
    truth : ndarray of int, shape (n,)
        1, 0, or -1 (unknown, left out).
    score : ndarray of float, shape (n,)
        Probability of the target.
    target : str
    prevalence : float
        Share of positives that the probabilities assume.
    """
    threshold = choose_threshold(truth, score)
    return Decision(target, threshold, prevalence, _target_temperature(truth, score, prevalence))


def _target_temperature(truth: np.ndarray, score: np.ndarray, prevalence: float) -> float:
    """Fit the temperature at the share of positives that the galaxies themselves have."""
    labels = {"morphology": np.full(len(truth), UNKNOWN), "targets": truth[:, None]}
    natural = balance(labels, 1, "none").assumed_prevalence[0]
    return fit_temperature(truth, score, prevalence, natural)


def validation_metrics(predictions: pa.Table, config: ClassifierConfig) -> dict[str, float]:
    """Return what is followed from epoch to epoch, on validation galaxies."""
    chosen = of_split(predictions, "validation")
    classes = _classes(chosen, config)
    followed = {"accuracy": classes.accuracy.value, "macro_f1": classes.macro_f1}
    if not config.targets:
        return followed
    truth, score = _truth_and_score(chosen)
    detection = completeness_purity(truth, score, choose_threshold(truth, score))
    return followed | {
        "average_precision": average_precision(truth, score),
        "completeness": detection.completeness.value,
        "purity": detection.purity.value,
        "f1": detection.f1,
    }


@dataclass(frozen=True)
class Calibration:
    """What validation galaxies say of a classifier's probabilities.

    Attributes
    ----------
    natural : Shares
        Of the validation galaxies.
    assumed : tuple of float
        Class shares that the probabilities assume.
    class_temperature : float
    temperature : float
        Of the rare target's probability; 1 where there is none.
    """

    natural: Shares
    assumed: tuple[float, ...]
    class_temperature: float
    temperature: float

    @classmethod
    def of(cls, validation: pa.Table, config: ClassifierConfig) -> Calibration:
        """Fit the temperatures."""
        morphology = validation["morphology"].to_numpy()
        truth = validation["truth"].to_numpy() if config.targets else np.full(len(validation), -1)
        labels = {"morphology": morphology, "targets": truth[:, None]}
        natural = balance(labels, len(config.classes), "none").assumed
        assumed = config.class_shares or natural.classes
        class_temperature = fit_class_temperature(
            morphology, probabilities(validation), assumed, natural.classes
        )
        if not config.targets:
            return cls(natural, assumed, class_temperature, 1.0)
        temperature = _target_temperature(truth, validation["score"].to_numpy(), config.prevalence[0])
        return cls(natural, assumed, class_temperature, temperature)

    def _named(self, rows: pa.Table, temperature: float) -> tuple[np.ndarray, np.ndarray]:
        """Return whether the class that is named is right, and how sure the classifier is of it."""
        probability = self.at_shares(probabilities(rows), 1.0, temperature)
        truth = rows["morphology"].to_numpy()
        right = np.where(truth < 0, -1, probability.argmax(axis=1) == truth)
        return right, np.minimum(probability.max(axis=1), 1.0)

    def _of_target(
        self, rows: pa.Table, config: ClassifierConfig, temperature: float
    ) -> tuple[np.ndarray, np.ndarray]:
        truth, score = _truth_and_score(rows)
        return truth, shift_prior(score, config.prevalence[0], self.natural.prevalence[0], temperature)

    def at_shares(self, probability: np.ndarray, exponent: float, temperature: float = 1.0) -> np.ndarray:
        """Move the classes' probabilities to shares in proportion to a power of the galaxies' own.

        Logit adjustment after training, with tau = 1 - exponent (Menon et al. 2021): at 1 galaxies are as
        frequent as they are, at 0 all classes are alike, and between the two a rare class is named more
        readily, and missed less often, than its share says.
        """
        shares = np.asarray(self.natural.classes) ** exponent
        return shift_class_priors(probability, self.assumed, (shares / shares.sum()).tolist(), temperature)

    def judged(self, rows: pa.Table, config: ClassifierConfig) -> dict[str, Any]:
        """Return temperatures and calibration errors, before and after, at the validation's shares."""
        found = {"classes": _errors(partial(self._named, rows), self.class_temperature)}
        if config.targets:
            found["target"] = _errors(partial(self._of_target, rows, config), self.temperature)
        return found

    def figure(self, rows: pa.Table, config: ClassifierConfig) -> Figure:
        """Draw the reliability of the target, or else of the classes, before and after."""
        if config.targets:
            at, temperature = partial(self._of_target, rows, config), self.temperature
        else:
            at, temperature = partial(self._named, rows), self.class_temperature
        names = {"as it comes": 1.0, f"at temperature {temperature:.2f}": temperature}
        return reliability_figure({name: reliability(*at(t)) for name, t in names.items()})


def _errors(at: Callable[[float], tuple[np.ndarray, np.ndarray]], temperature: float) -> dict[str, Any]:
    before, after = at(1.0), at(temperature)
    return {
        "temperature": temperature,
        "ece_before": _estimate(calibration_error, *before),
        "ece_after": _estimate(calibration_error, *after),
    }


def judge(predictions: pa.Table, config: ClassifierConfig) -> tuple[Decision | None, dict[str, Any]]:
    """Choose threshold and temperature on validation galaxies and judge them, on test galaxies too.

    Parameters
    ----------
    predictions : pyarrow.Table
        ``split``, ``morphology``, ``morphology_predicted``, ``morphology_probability`` and, of a rare target,
        ``truth``, ``score``; ``morphology_turned`` where images were seen in their eight symmetries.
    config : ClassifierConfig

    Returns
    -------
    decision : Decision or None
        None where no rare target is looked for.
    report : dict
        By split: counts; of the target completeness, purity, F1 and average precision, of the classes
        accuracy, completeness and purity, and calibration, with 95% intervals. The classes are judged as the
        probabilities have them, by the mean of the eight symmetries where there is one, and by that with rare
        classes named more readily (``morphology_halfway``, see `Calibration.at_shares`).
    """
    validation, decision = of_split(predictions, "validation"), None
    calibration = Calibration.of(validation, config)
    if config.targets:
        decision = tune(*_truth_and_score(validation), config.target_names[0], config.prevalence[0])
    return decision, {
        split: _judge_split(of_split(predictions, split), decision, config, calibration)
        for split in JUDGED_SPLITS
    }


def _judge_split(
    rows: pa.Table, decision: Decision | None, config: ClassifierConfig, calibration: Calibration
) -> dict[str, Any]:
    classes = _classes(rows, config)
    judged = {
        "text": str(classes),
        "galaxies": len(rows),
        "morphology": classes.as_dict() | _class_figures(rows, config),
        "calibration": calibration.judged(rows, config),
        **({"votes": _vote_errors(rows)} if config.votes else {}),
    }
    true_class, seen = rows["morphology"].to_numpy(), probabilities(rows)
    if _TURNED in rows.column_names:
        seen = _matrix(rows, _TURNED)
        turned = classification(true_class, seen, classes.classes)
        judged |= {_TURNED: turned.as_dict(), "text": f"{classes}\nin eight symmetries {turned.headline}"}
    evened = calibration.at_shares(seen, _HALFWAY_EXPONENT)
    halfway = classification(true_class, evened, classes.classes)
    judged |= {_HALFWAY: halfway.as_dict(), "text": f"{judged['text']}\nat halfway shares {halfway.headline}"}
    if decision is None:
        return judged
    truth, score = _truth_and_score(rows)
    detection = completeness_purity(truth, score, decision.threshold)
    precision = bootstrapped(average_precision, truth, score, seed=0)
    return {
        **judged,
        **detection.as_dict(),
        "text": f"{detection}; average precision {precision}",
        "average_precision": precision.as_dict(),
        **_at_fixed(truth, score),
    }


def _vote_errors(rows: pa.Table) -> dict[str, Any]:
    """Return each question's mean absolute error of vote fractions, over its answers, where it was asked."""
    truth, said, asked = (_matrix(rows, name) for name in ("votes", "votes_predicted", "volunteers"))
    error = np.abs(said - truth)
    errors = {}
    for index, question in enumerate(DECISION_TREE):
        of_question = error[asked[:, index] >= _VOLUNTEERS][:, index == QUESTION_OF_ANSWER].mean(axis=1)
        errors[question.name] = _estimate(lambda e: float(e.mean()) if len(e) else np.nan, of_question)
    return errors


def _class_figures(rows: pa.Table, config: ClassifierConfig) -> dict[str, Any]:
    """Return macro figures with intervals, and each class's completeness at fixed purity and the reverse."""
    truth, probability = rows["morphology"].to_numpy(), probabilities(rows)
    figures: dict[str, Any] = {
        "macro_f1_interval": _estimate(macro_f1, truth, rows["morphology_predicted"].to_numpy()),
        "macro_average_precision": _estimate(macro_average_precision, truth, probability),
    }
    for k, name in enumerate(config.class_names):
        figures[name] = _at_fixed(one_against_others(truth, k), probability[:, k])
    return figures


def _at_fixed(truth: np.ndarray, score: np.ndarray) -> dict[str, Any]:
    """Return completeness at fixed purity and the reverse, along these galaxies' own curve."""

    def shares(truth: np.ndarray, score: np.ndarray) -> list[float]:
        return shares_at(truth, score, PURITIES, COMPLETENESSES)

    names = [f"completeness_at_purity_{at:g}" for at in PURITIES]
    names += [f"purity_at_completeness_{at:g}" for at in COMPLETENESSES]
    found = bootstrapped_each(shares, truth, score, seed=0, n_resamples=_RESAMPLES)
    return {name: estimate.as_dict() for name, estimate in zip(names, found, strict=True)}


def _estimate(statistic: Callable[..., float], *arrays: np.ndarray) -> dict[str, float]:
    return bootstrapped(statistic, *arrays, seed=0, n_resamples=_RESAMPLES).as_dict()


def figures(predictions: pa.Table, config: ClassifierConfig) -> dict[str, Figure]:
    """Return what is drawn of test galaxies, by file name; the target's curves of validation too."""
    by_split = {split: of_split(predictions, split) for split in JUDGED_SPLITS}
    calibration, rows = Calibration.of(by_split["validation"], config), by_split["test"]
    truth = rows["morphology"].to_numpy()
    drawn = {
        "confusion.png": confusion_figure(_classes(rows, config)),
        "class_curves.png": class_curve_figure(truth, probabilities(rows), config.class_names),
        "reliability.png": calibration.figure(rows, config),
    }
    return drawn | ({"curves.png": curve_figure(by_split)} if config.targets else {})


def _classes(rows: pa.Table, config: ClassifierConfig) -> ClassReport:
    return classification(
        rows["morphology"].to_numpy(), rows["morphology_predicted"].to_numpy(), config.class_names
    )


def said(rows: pa.Table) -> Probabilities:
    """Return what a classifier said of galaxies, as its predictions keep it."""
    score = rows["score"].to_numpy()[:, None] if "score" in rows.column_names else np.empty((len(rows), 0))
    return Probabilities(probabilities(rows), score.astype(np.float32))


def probabilities(rows: pa.Table) -> np.ndarray:
    """Return the classes' probabilities that a classifier's predictions keep, float32 (n, classes)."""
    return _matrix(rows, "morphology_probability")


def _matrix(rows: pa.Table, name: str) -> np.ndarray:
    column = rows[name].combine_chunks()
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(rows), column.type.list_size)


def _truth_and_score(rows: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    return rows["truth"].to_numpy(), rows["score"].to_numpy()
