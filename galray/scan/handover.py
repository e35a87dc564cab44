"""Scores -> what astronomers are handed: tables of candidates, a page to grade them on, a report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from galray.classifier.decision import Decision
from galray.classifier.detection import Detection, completeness_purity
from galray.classifier.expectation import expected_yield
from galray.classifier.judging import PREDICTIONS_FILE
from galray.core.cluster import say
from galray.core.manifest import Manifest, publish
from galray.core.schema import SCORE_SCHEMA
from galray.core.shards import read_shards, shard_paths
from galray.core.storage import Location
from galray.core.tracking import Run
from galray.scan.candidates import select, tables
from galray.scan.columns import Columns
from galray.scan.ensemble import Ensemble
from galray.scan.hats import hats_files
from galray.scan.known import MATCHED, KnownObjects, MatchKnown, nearest_sources
from galray.scan.page import page
from galray.scan.report import Recovery, Report, ScoreHistogram

_LARGEST_TRACKED_PAGE_BYTES = 20 << 20
_SEED = 0  # of the expected counts' draws: the same report every time


@dataclass(frozen=True)
class HandOver:
    """What a list of candidates is made of.

    Attributes
    ----------
    scores : Location
        Published scores.
    scored : Manifest
        Theirs.
    ensemble : Ensemble
        What scored.
    model_id : str
    decision : Decision
    max_candidates : int
        Longest list.
    number : int or None
        Length of the list, where that was the aim: the threshold then follows from it.
    survey : str
        What was scanned, for people.
    survey_prevalence : float or None
    known : Location or None
        Table of known objects, with `known_columns`.
    match_radius_arcsec : float
    hats : bool
        Whether the list is written as HATS too.
    """

    scores: Location
    scored: Manifest
    ensemble: Ensemble
    model_id: str
    decision: Decision
    max_candidates: int
    number: int | None
    survey: str
    survey_prevalence: float | None
    known: Location | None
    known_columns: Columns
    match_radius_arcsec: float
    hats: bool

    def publish(self, place: Location, config: Mapping[str, Any], run: Run) -> Manifest:
        """Write the candidates folder: tables, page and report."""
        known = KnownObjects.read(self.known, self.known_columns) if self.known else None
        decision, count = self.decision, self.number or self.max_candidates
        best, above = best_scores(self.scores, decision.threshold, count)
        chosen = select(
            best,
            threshold=decision.threshold,
            count=count,
            train_prevalence=decision.train_prevalence,
            temperature=decision.temperature,
            survey_prevalence=self.survey_prevalence,
            known=known,
            model_id=self.model_id,
            run_id=self.scored.fingerprint,
        )
        ranked = len(chosen) - chosen["rank"].null_count
        if self.number and ranked:
            decision, above = replace(decision, threshold=_lowest(chosen)), ranked
        report = self._report(decision, ranked, above, known)
        document = report.document()
        html = page(
            chosen,
            title=f"{decision.target.replace('_', ' ').capitalize()} candidates",
            run_id=self.scored.fingerprint,
            facts=self._facts(decision.threshold, above),
            match_radius_arcsec=self.match_radius_arcsec,
        )
        with publish(place, "candidates", config, {self.scores.uri: self.scored.fingerprint}) as publication:
            for extension, data in tables(chosen).items():
                publication.write(f"candidates.{extension}", data, len(chosen))
            if self.hats:
                for path, data in hats_files(chosen, decision.target).items():
                    publication.write(f"candidates.hats/{path}", data)
            for name, data in document.files("report").items():
                publication.write(name, data)
            publication.write("index.html", html)
            publication.lineage |= asdict(decision)
            if report.expected:
                publication.lineage["expected"] = asdict(report.expected)
            publication.counts |= {
                "candidates": ranked,
                "above_threshold": above,
                "random_arm": int(np.count_nonzero(chosen["random_arm"])),
                "sources": self.scored.counts["rows_out"],
            }
        run.metrics(publication.counts)
        for name, text in {"candidates.html": html, "report.html": document.html()}.items():
            if len(text) < _LARGEST_TRACKED_PAGE_BYTES:
                run.text(text, name)
        left_out = f", the best of {above} above the threshold" if above > ranked else ""
        say(f"scan: {ranked} candidates{left_out}; grade them on {place.uri}/index.html")
        if self.hats and (nowhere := chosen["ra"].null_count):
            say(f"scan: {nowhere} rows without a position are not in {place.uri}/candidates.hats")
        return Manifest.read(place)

    def _facts(self, threshold: float, above: int) -> Mapping[str, str]:
        return {
            "survey": self.survey,
            "sources": f"{self.scored.counts['rows_out']:,}",
            "above threshold": f"{above:,}",
            "threshold": f"{threshold:.4g}",
            "classifier": self.model_id,
        }

    def _report(self, decision: Decision, ranked: int, above: int, known: KnownObjects | None) -> Report:
        detection = self._detection(decision)
        n_sources, prevalence = self.scored.counts["rows_out"], self.survey_prevalence
        expected = None
        if detection and prevalence:
            expected = expected_yield(detection, n_sources, prevalence, seed=_SEED)
        return Report(
            decision=decision,
            survey=self.survey,
            counts=self.scored.counts,
            ranked=ranked,
            above=above,
            random_share=self.scored.lineage["random_share"],
            survey_prevalence=prevalence,
            detection=detection,
            expected=expected,
            histogram=score_histogram(self.scores),
            recovery=self._recovery(known, decision.threshold) if known else None,
            model_id=self.model_id,
            run_id=self.scored.fingerprint,
        )

    def _detection(self, decision: Decision) -> Detection | None:
        """Measure the threshold on test galaxies, where they are known to be of its target.

        On those that chose it, it does better than on any others.
        """
        first = self.ensemble.classifiers[0]
        of_target = Decision.read(first).target == decision.target
        if not of_target or not (first / PREDICTIONS_FILE).exists():
            return None
        judged = self.ensemble.judged(decision.target, "test")
        return completeness_purity(*judged, decision.threshold) if len(judged[0]) else None

    def _recovery(self, known: KnownObjects, threshold: float) -> Recovery:
        match = MatchKnown(known, self.match_radius_arcsec)
        columns = ["galaxy_id", "ra", "dec", "score"]
        found = read_shards(self.scores, "scores", columns).map_batches(
            match.__call__, batch_size=None, batch_format="pyarrow"
        )
        matched = nearest_sources(pa.Table.from_pylist(found.take_all(), schema=MATCHED))
        names = [known.name[i] for i in matched["known"].to_pylist()]
        return Recovery(
            listed=len(known),
            radius_arcsec=self.match_radius_arcsec,
            matched=matched.add_column(0, "name", pa.array(names, pa.string())),
            threshold=threshold,
        )


def best_scores(scores: Location, threshold: float, count: int) -> tuple[pa.Table, int]:
    """Read the best sources back from a scan, the random arm, and no others.

    Returns
    -------
    best : pyarrow.Table
        `galray.core.schema.SCORE_SCHEMA`; those at or above the threshold, but at most `count`, and
        any that score the same as the last of them; and the random arm.
    above : int
        How many are at or above the threshold.
    """
    shards = _shards(scores)
    floor = np.float32(threshold)
    high = shards.to_table(columns=["score"], filter=pc.field("score") >= floor)["score"].to_numpy()
    if len(high) > count:
        floor = np.partition(high, -count)[-count]
    return shards.to_table(filter=(pc.field("score") >= floor) | pc.field("random_arm")), len(high)


def score_histogram(scores: Location, bins: int = 50) -> ScoreHistogram:
    """Count all scores in bins of equal width over [0, 1], a batch at a time."""
    edges = np.linspace(0, 1, bins + 1)
    counts = np.zeros(bins, np.int64)
    for batch in _shards(scores).to_batches(columns=["score"]):
        counts += np.histogram(batch["score"].to_numpy(), edges)[0]
    return ScoreHistogram(edges, counts)


def _shards(scores: Location) -> pads.Dataset:
    paths = shard_paths(scores, "scores")
    return pads.dataset(paths, SCORE_SCHEMA, format="parquet", filesystem=scores.filesystem)


def _lowest(chosen: pa.Table) -> float:
    """Return the lowest score that made a candidate."""
    return float(chosen.filter(pc.field("rank").is_valid())["score"].to_numpy().min())
