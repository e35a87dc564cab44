"""The report beside the candidates: what was scanned, what to expect of the list, what is found again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from galray.classifier.decision import Decision
from galray.classifier.detection import Detection
from galray.classifier.expectation import Yield
from galray.core.intervals import Estimate, Rate
from galray.core.pictures import blank_figure, png
from galray.core.schema import REJECT_REASONS
from galray.scan.document import Document, Figure, Section

_DPI = 150


@dataclass(frozen=True)
class ScoreHistogram:
    """How often each score was given: `counts` int64, shape (bins,), between `edges`."""

    edges: np.ndarray
    counts: np.ndarray


@dataclass(frozen=True)
class Recovery:
    """Which known objects the scan finds again.

    Attributes
    ----------
    listed : int
        Known objects in the list.
    radius_arcsec : float
        A source this near is taken to be the object.
    matched : pyarrow.Table
        ``name``, ``galaxy_id``, ``score``, ``separation`` of those that were scanned, best first.
    threshold : float
    """

    listed: int
    radius_arcsec: float
    matched: pa.Table
    threshold: float

    @property
    def found(self) -> Rate:
        """Share of the known objects that were scanned which score at or above the threshold."""
        scores = self.matched["score"].to_numpy()
        return Rate(int((scores >= np.float32(self.threshold)).sum()), len(scores))


@dataclass(frozen=True)
class Report:
    """What the report says."""

    decision: Decision
    survey: str
    counts: Mapping[str, int]
    ranked: int
    above: int
    random_share: float
    survey_prevalence: float | None
    detection: Detection | None
    expected: Yield | None
    histogram: ScoreHistogram
    recovery: Recovery | None
    model_id: str
    run_id: str

    def document(self) -> Document:
        """Write it out."""
        return Document(
            title=f"{self.decision.target.replace('_', ' ').capitalize()} candidates",
            about=f"Scan {self.run_id} of {self.survey} with classifier {self.model_id}.",
            sections=[
                self._sources(),
                self._threshold(),
                self._expectation(),
                self._random_arm(),
                self._known_objects(),
            ],
            note="Shares carry 95% Wilson score intervals and their counts.",
            link="index.html",
        )

    def _sources(self) -> Section:
        rejects = {
            f"rejected: {REJECT_REASONS[name.removeprefix('rejects.')]}": count
            for name, count in self.counts.items()
            if name.startswith("rejects.")
        }
        numbers = {
            "rows of the catalogue": self.counts["rows_in"],
            "not selected": self.counts["not_selected"],
            **rejects,
            "scored": self.counts["rows_out"],
            "at or above the threshold": self.above,
            "in the list": self.ranked,
        }
        return Section(
            "What was scanned",
            rows=[[name, f"{count:,}"] for name, count in numbers.items()],
            figure=Figure("scores.png", self._figure(), "Scores of all sources, and the threshold"),
        )

    def _figure(self) -> bytes:
        """Draw a histogram of all scores, with the threshold, as PNG."""
        figure = blank_figure(6.4, 3.4)
        ax = figure.subplots()
        ax.stairs(self.histogram.counts, self.histogram.edges, fill=True, color="#5b9bd8", baseline=0.5)
        ax.axvline(self.decision.threshold, color="#b9626a", label=f"threshold {self.decision.threshold:.3g}")
        if self.recovery and len(self.recovery.matched):
            scores = self.recovery.matched["score"].to_numpy()
            ax.plot(scores, np.full(len(scores), 0.7), "k|", markersize=9, label="known objects")
        ax.set(xlabel="score", ylabel="sources", yscale="log", xlim=(0, 1), ylim=(0.5, None))
        ax.legend(frameon=False)
        return png(figure, _DPI)

    def _threshold(self) -> Section:
        text = f"A candidate scores at least {self.decision.threshold:.4g}. "
        if self.detection is None:
            text += "The classifier has no test predictions of this target to tell what that brings."
        else:
            true, others = self.detection.completeness.total, self.detection.false_positive_rate.total
            text += (
                f"On the classifier's test galaxies, which chose nothing, {true} true and {others} others, "
                f"this has completeness {self.detection.completeness} and false positive rate "
                f"{self.detection.false_positive_rate}."
            )
        return Section("The threshold", text)

    def _expectation(self) -> Section:
        heading = "What to expect"
        if self.survey_prevalence is None:
            return Section(
                heading, "State how rare the target is (--survey-prevalence) to have counts predicted."
            )
        if self.expected is None:
            return Section(heading, "Without predictions of test galaxies nothing can be predicted.")
        text = (
            f"Before anyone has looked, at a prevalence of {self.survey_prevalence:.3g} (taken as exact). "
            "Medians and 95% intervals hold what the few test galaxies leave open, under Jeffreys' "
            "prior, and the chance of the count. They do not hold a survey that looks unlike those galaxies."
        )
        rows = [
            ["candidates", _counted(self.expected.candidates)],
            ["true ones among them", _counted(self.expected.true)],
            ["purity", str(self.expected.purity)],
            ["completeness", str(self.expected.completeness)],
        ]
        return Section(heading, text, rows)

    def _random_arm(self) -> Section:
        text = "None was drawn (--random-share), so completeness cannot be measured by grading."
        if self.random_share:
            text = (
                f"{100 * self.random_share:.3g}% of all sources, drawn by a hash of their ids whatever they "
                "score, are on the page among the candidates, and marked in the tables alone (random_arm). "
                "Grade them like the others: jobs/vet.py measures completeness from them."
            )
        return Section("Random arm", text)

    def _known_objects(self) -> Section:
        recovery = self.recovery
        if recovery is None:
            return Section("Known objects", "No list was given (--known).")
        text = (
            f"Of {recovery.listed} known objects {len(recovery.matched)} lie within "
            f"{recovery.radius_arcsec:.3g} arcsec of a scored source. "
            f"At or above the threshold: {recovery.found if len(recovery.matched) else 'none'}."
        )
        rows = [
            [row["name"], str(row["galaxy_id"]), f"{row['score']:.4f}", f"{row['separation']:.2f}"]
            for row in recovery.matched.to_pylist()
        ]
        header = [["known object", "galaxy_id", "score", "separation, arcsec"]] if rows else []
        return Section("Known objects", text, header + rows, has_header=bool(rows))


def _counted(estimate: Estimate) -> str:
    return f"{estimate.value:,.0f} [{estimate.low:,.0f}, {estimate.high:,.0f}]"
