"""A survey -> scores -> ranked candidates, on Ray Data.

Every row of the catalogue ends as one row of scores or one of rejects, or is counted as not selected,
whatever is killed and however often the scan is resumed: the catalogue is cut into units
(`galray.scan.partition`), each of which is done once (`galray.core.units`). One task reads a unit's tiles,
cuts and colours its sources, scores them and writes them as one shard, so that pixels never leave the
process. The rows are counted before the scores are published.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa
import ray

from galray.classifier.decision import Decision
from galray.core.cluster import say
from galray.core.errors import PublishError
from galray.core.manifest import Manifest, Publication, publish, standing
from galray.core.schema import SCORE_SCHEMA
from galray.core.shards import rejects_told, shard_paths
from galray.core.storage import Location
from galray.core.tracking import Run, track
from galray.core.units import forget_units, write_units
from galray.data.tile_files import TileFiles
from galray.scan.aim import decide
from galray.scan.catalogue import read_sources
from galray.scan.engine import check_agreement
from galray.scan.ensemble import Ensemble
from galray.scan.handover import HandOver
from galray.scan.options import ScanConfig
from galray.scan.partition import SOURCES, prepare, prepared, units_of
from galray.scan.pixels import GALAXY_COLUMNS, CutSources, DecodeGalaxies, Side
from galray.scan.scoring import ScoreUnit, Scoring, UnitImages

_DECIDES_PIXELS = (
    *("tile_files", "bands", "saturation", "rendering", "cutout_px", "cutout_arcsec", "cutout_radii"),
    "batch_size",  # on which the last bits of sums depend
)


def scan(config: ScanConfig) -> Manifest:
    """Score every source of a survey, and hand over the best as candidates.

    Returns
    -------
    Manifest
        Of the candidates.

    Raises
    ------
    InputError
        Missing columns, no usable row, a catalogue or classifier that cannot be read.
    PublishError
        An output already stands, or stands with scores of another classifier.
    StorageError
        A place that cannot be reached or written.
    """
    output, place = config.location(config.output), config.location(config.candidates)
    scored = standing(output, "scores", config.resume)
    done = standing(place, "candidates", config.resume)
    if scored and done:
        say(f"scan: {place.uri} stands with {done.counts['candidates']} candidates")
        return done
    with track("scan", config) as run:
        survey = _Survey.of(config)
        if scored is None:
            scored = survey.score(output, run)
        survey.check_scored_by(scored, output)
        return survey.hand_over(output, scored, place, run)


@dataclass(frozen=True)
class _Survey:
    """A configuration with what the classifiers' folders say of it."""

    config: ScanConfig
    ensemble: Ensemble
    manifests: tuple[Manifest, ...]
    decision: Decision

    @classmethod
    def of(cls, config: ScanConfig) -> _Survey:
        classifiers = tuple(map(config.location, (config.classifier, *config.ensemble)))
        manifests = tuple(Manifest.read(classifier, "classifier") for classifier in classifiers)
        ensemble = Ensemble.read(classifiers, turns=config.turns)
        decision = decide(config.aim, config.target, config.survey_prevalence, ensemble)
        return cls(config, ensemble, manifests, decision)

    @property
    def parents(self) -> dict[str, str]:
        pairs = zip(self.ensemble.classifiers, self.manifests, strict=True)
        parents = {classifier.uri: manifest.fingerprint for classifier, manifest in pairs}
        if self.config.galaxies:
            parents[self._galaxies.uri] = Manifest.read(self._galaxies, "galaxies").fingerprint
        return parents

    @cached_property
    def _galaxies(self) -> Location:
        return self.config.location(self.config.galaxies)

    @cached_property
    def _tiles(self) -> TileFiles:
        config = self.config
        limit = float("inf") if config.saturation is None else config.saturation
        return TileFiles(config.location(config.tiles), config.tile_files, config.bands, limit)

    def _asked(self) -> dict[str, Any]:
        """Return what the sources to scan follow from, as JSON has it."""
        options = asdict(self.config)
        names = ("columns", "select", "tile_files", "bands", "rows_per_task", "blend_radius_arcsec")
        places = {name: self.config.location(options[name]).uri for name in ("catalogue", "tiles")}
        return json.loads(json.dumps({**places, **{name: options[name] for name in names}}))

    def _files(self, output: Location) -> Manifest:
        """Return the files that are the units: of galaxies, or of the catalogue's sources."""
        if self.config.galaxies:
            shard_paths(self._galaxies, "galaxies")  # refuses what is not as it was published
            return Manifest.read(self._galaxies, "galaxies")
        return prepared(output, self._asked()) or self._prepare(output)

    def _prepare(self, output: Location) -> Manifest:
        config = self.config
        catalogue = config.location(config.catalogue)
        rows = read_sources(catalogue, config.columns, config.selection(), self._tiles)
        return prepare(output, self._asked(), rows, config.rows_per_task, config.blend_radius_arcsec)

    def _images(self, output: Location) -> UnitImages:
        config, size_px = self.config, self.ensemble.settings[0].size_px
        if config.galaxies:
            made = DecodeGalaxies(size_px)
            return UnitImages(self._galaxies, GALAXY_COLUMNS, made, config.batch_size)
        side = Side(config.cutout_px or size_px, config.cutout_arcsec, config.cutout_radii)
        cut = CutSources(self._tiles, side, size_px, config.rendering)
        return UnitImages(output / SOURCES, None, cut, config.batch_size)

    def _check_engine(self) -> dict[str, Any]:
        """Compare the engine with torch, where the units are scored: on a worker."""
        if self.scoring.engine.is_reference:
            return check_agreement(self.ensemble.classifiers, self.scoring.engine)
        on_gpu: dict[str, Any] = {"num_gpus": 1} if self.config.gpus else {"num_cpus": 1}
        check = ray.remote(**on_gpu)(check_agreement)
        return ray.get(check.remote(self.ensemble.classifiers, self.scoring.engine))

    def score(self, output: Location, run: Run) -> Manifest:
        """Score all sources and publish the scores."""
        config, started_s = self.config, time.monotonic()
        with publish(output, "scores", config.resolved(), self.parents) as publication:
            agreement = self._check_engine()
            files = self._files(output)
            self._score_units(units_of(files), files.fingerprint, publication)
            not_selected = files.counts.get("not_selected", 0) if not config.galaxies else 0
            publication.counts["rows_in"] += not_selected
            publication.counts["not_selected"] = not_selected
            publication.lineage |= {**self._asked_scores(), "agreement": agreement}
            rate = publication.counts["rows_in"] / (time.monotonic() - started_s)
            run.metrics({**publication.counts, "sources_per_s": rate})
        (output / SOURCES).delete()
        forget_units(output)
        counts = publication.counts
        told = (
            f"{counts['rows_in']} sources, {counts['not_selected']} not selected, "
            f"{counts['rows_out']} scored, {rejects_told(counts)}"
        )
        say(f"scan: {told}, {rate:.0f} sources/s -> {output.uri}")
        return Manifest.read(output)

    @cached_property
    def scoring(self) -> Scoring:
        config, floor = self.config, self.config.keep_image_score
        return Scoring(
            classifiers=self.ensemble.classifiers,
            target=self.decision.target,
            keep_image_score=self.decision.threshold if floor is None else floor,
            random_share=config.random_share,
            engine=config.runs_on(),
            turns=self.ensemble.turns,
        )

    def _score_units(self, units: pa.Table, files: str, publication: Publication) -> None:
        """Score in the tasks that cut, or in actors that hold a GPU each."""
        config, images = self.config, self._images(publication.location)
        options = asdict(config)
        write_units(
            units,
            ScoreUnit,
            (images, self.scoring),
            publication,
            SCORE_SCHEMA,
            plan={
                "files": files,
                "parents": self.parents,
                "tiles": self._tiles.location.uri,
                "keep_image_score": self.scoring.keep_image_score,
                **self._asked_scores(),
                **{name: options[name] for name in _DECIDES_PIXELS},
            },
            **({"first": images, "concurrency": config.gpus, "num_gpus": 1} if config.gpus else {}),
        )

    def _asked_scores(self) -> dict[str, Any]:
        """Return what the scores depend on, beside the classifiers and the survey."""
        config = self.config
        return {
            "target": self.decision.target,
            "random_share": config.random_share,
            "turns": config.turns,
            "engine": config.engine,
            "precision": config.precision,
        }

    def check_scored_by(self, scored: Manifest, output: Location) -> None:
        """Refuse to go on with scores of another classifier or target."""
        asked = self._asked_scores()
        told = {name: scored.lineage.get(name) for name in asked}
        if scored.parents != self.parents or told != asked:
            raise PublishError(
                f"{output.uri} holds scores of another classifier, target, survey, random share or engine. "
                "Give another --output, or delete it to scan again."
            )

    def hand_over(self, output: Location, scored: Manifest, place: Location, run: Run) -> Manifest:
        """Publish the best sources as tables, as a page to grade them on, and as a report."""
        config = self.config
        return HandOver(
            scores=output,
            scored=scored,
            ensemble=self.ensemble,
            model_id="+".join(manifest.fingerprint for manifest in self.manifests),
            decision=self.decision,
            max_candidates=config.max_candidates,
            number=config.aim.number,
            survey=config.location(config.galaxies or config.catalogue).uri,
            survey_prevalence=config.survey_prevalence,
            known=config.location(config.known) if config.known else None,
            known_columns=config.known_columns,
            match_radius_arcsec=config.match_radius_arcsec,
            hats=config.hats,
        ).publish(place, config.resolved(), run)
