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
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import pyarrow as pa

from galray.classifier import network
from galray.classifier.decision import Decision
from galray.core.cluster import say
from galray.core.config import JobConfig, Preset, require
from galray.core.errors import PublishError
from galray.core.manifest import Manifest, Publication, local_folder, publish, standing
from galray.core.schema import SCORE_SCHEMA
from galray.core.shards import rejects_told, shard_paths
from galray.core.storage import Location
from galray.core.tracking import Run, track
from galray.core.units import forget_units, write_units
from galray.data.expressions import Expression
from galray.data.images import BANDS, Rendering
from galray.data.tile_files import TileFiles
from galray.scan.aim import Aim, decide
from galray.scan.catalogue import read_sources
from galray.scan.columns import Columns
from galray.scan.handover import HandOver
from galray.scan.partition import SOURCES, prepare, prepared, units_of
from galray.scan.pixels import GALAXY_COLUMNS, CutSources, DecodeGalaxies
from galray.scan.scoring import ScoreUnit, UnitImages

_DECIDES_PIXELS = ("tiles", "tile_files", "bands", "rendering", "cutout_px", "cutout_radii", "batch_size")


@dataclass(frozen=True, kw_only=True)
class ScanConfig(JobConfig):
    """Which survey to scan, with which classifier, and what makes a candidate."""

    catalogue: str = "{root}/survey/catalogue"
    """Parquet (a file, a folder or HATS), FITS, CSV or VOTable."""
    columns: Columns = field(default_factory=Columns)
    """What the catalogue calls its columns; those of SDSS, the Legacy Survey and GZ2 are known."""
    select: str = ""
    """Rows to scan, as in "type != 'PSF' and flux_r > 10"; no pixel of the others is read."""
    tiles: str = "{root}/survey/tiles"
    """Folder or s3:// prefix of the tiles."""
    tile_files: str = "{tile}.fits"
    """A tile's file, or '{tile}-{band}.fits' for one file a band; .gz, .bz2 and .fz as well."""
    bands: tuple[str, str, str] = BANDS
    """What the tiles call g, r and i; one band may stand for several."""
    galaxies: str = ""
    """Instead of catalogue and tiles: published galaxy shards, cutouts already made."""
    classifier: str = "{root}/classifier"
    output: str = "{root}/scan"
    candidates: str = "{root}/candidates"
    target: str = ""
    """The rare target that is looked for; empty takes the one the classifier was tuned for."""
    aim: Aim = field(default_factory=Aim)
    """What makes a candidate; left out, the classifier's own threshold."""
    survey_prevalence: float | None = None
    """Expected share of targets in the survey: corrects probabilities, and predicts what is found."""
    max_candidates: int = 2000
    """Keep at most so many of the best."""
    random_share: float = 0.0
    """Share of all sources to grade whatever they score; makes completeness measurable."""
    keep_image_score: float | None = None
    """Keep the cutouts of sources that score at least this; left out, of the candidates."""
    known: str = ""
    """Table of known objects to cross-match with: any catalogue, or rows of plain text."""
    known_columns: Columns = field(default_factory=Columns)
    """What it calls its columns; plain text has col1, col2, ... The id may be a name."""
    match_radius_arcsec: float = 3.0
    """A source this near to a known object is taken to be it."""
    rendering: Rendering = field(default_factory=Rendering)
    """How flux becomes colour; must be what the training images had."""
    cutout_px: int = 0
    """Side of the cutouts before they are resampled for the classifier; 0 takes its size."""
    cutout_radii: float = 0.0
    """Scale the cutouts to so many of each source's radii instead; GZ2 showed 8.48 Petrosian ones."""
    batch_size: int = 128
    """Images that the classifier takes at once."""
    rows_per_task: int = 1024
    """Sources of one unit of work, and of one shard of scores, but whole tiles of up to eight times as
    many; for a billion sources, 65536."""
    gpus: int = 0
    """Actors that score, one GPU each; 0 scores on the CPUs, in the tasks that cut."""
    bfloat16: bool = False
    """Compute in bfloat16: larger classifiers run twice as fast, scores move by about 0.001."""

    def __post_init__(self) -> None:
        for name in ("max_candidates", "batch_size", "rows_per_task"):
            value = getattr(self, name)
            require(value >= 1, f"--{name.replace('_', '-')} is {value}; give at least 1.")
        for name in ("cutout_px", "cutout_radii", "gpus"):
            require(getattr(self, name) >= 0, f"--{name.replace('_', '-')} cannot be negative.")
        floor, prevalence = self.keep_image_score, self.survey_prevalence
        require(floor is None or 0 <= floor <= 1, f"--keep-image-score {floor} is not in [0, 1].")
        require(0 <= self.random_share < 1, f"--random-share {self.random_share} is not in [0, 1).")
        require(self.match_radius_arcsec > 0, "--match-radius-arcsec must be positive.")
        require(
            prevalence is None or 0 < prevalence < 1, f"--survey-prevalence {prevalence} is not in (0, 1)."
        )
        require(not (self.cutout_px and self.cutout_radii), "Give --cutout-px or --cutout-radii, not both.")
        require(
            not (self.galaxies and self.select),
            "--select chooses rows of a --catalogue, before pixels are read; --galaxies are cutouts already.",
        )
        require(
            self.aim.purity is None or prevalence is not None,
            "--aim.purity depends on how rare the target is: state the --survey-prevalence.",
        )
        require(
            self.aim.threshold is None or floor is None or floor <= self.aim.threshold,
            "--keep-image-score above --aim.threshold leaves candidates without their cutouts. Lower it.",
        )
        self.selection()

    def selection(self) -> Expression | None:
        """Return which rows are scanned; None for all."""
        return Expression(self.select) if self.select else None


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
    """A configuration with what the classifier's folder says of it."""

    config: ScanConfig
    classifier: Location
    manifest: Manifest
    network: network.ClassifierConfig
    decision: Decision

    @classmethod
    def of(cls, config: ScanConfig) -> _Survey:
        classifier = config.location(config.classifier)
        manifest = Manifest.read(classifier, "classifier")
        with local_folder(classifier, "classifier") as folder:
            settings = network.load(folder).config
        decision = decide(
            config.aim,
            config.target,
            config.survey_prevalence,
            Decision.read(classifier),
            settings,
            classifier,
        )
        return cls(config, classifier, manifest, settings, decision)

    @property
    def parents(self) -> dict[str, str]:
        parents = {self.classifier.uri: self.manifest.fingerprint}
        if self.config.galaxies:
            galaxies = self.config.location(self.config.galaxies)
            parents[galaxies.uri] = Manifest.read(galaxies, "galaxies").fingerprint
        return parents

    @cached_property
    def _galaxies(self) -> Location:
        return self.config.location(self.config.galaxies)

    @cached_property
    def _tiles(self) -> TileFiles:
        config = self.config
        return TileFiles(config.location(config.tiles), config.tile_files, config.bands)

    def _asked(self) -> dict[str, Any]:
        """Return what the sources to scan follow from, as JSON has it."""
        names = ("catalogue", "columns", "select", "tiles", "tile_files", "rows_per_task")
        asked = asdict(self.config)
        return json.loads(json.dumps({name: asked[name] for name in names}))

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
        return prepare(output, self._asked(), rows, config.rows_per_task)

    def _images(self, output: Location) -> UnitImages:
        config, size_px = self.config, self.network.size_px
        if config.galaxies:
            made = DecodeGalaxies(size_px)
            return UnitImages(self._galaxies, GALAXY_COLUMNS, made, config.batch_size)
        cutout_px = config.cutout_px or size_px
        cut = CutSources(self._tiles, cutout_px, config.cutout_radii, size_px, config.rendering)
        return UnitImages(output / SOURCES, None, cut, config.batch_size)

    def score(self, output: Location, run: Run) -> Manifest:
        """Score all sources and publish the scores."""
        config, started_s = self.config, time.monotonic()
        with publish(output, "scores", config.resolved(), self.parents) as publication:
            files = self._files(output)
            self._score_units(units_of(files), files.fingerprint, publication)
            not_selected = files.counts.get("not_selected", 0) if not config.galaxies else 0
            publication.counts["rows_in"] += not_selected
            publication.counts["not_selected"] = not_selected
            publication.lineage |= {"target": self.decision.target, "random_share": config.random_share}
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

    def _score_units(self, units: pa.Table, files: str, publication: Publication) -> None:
        """Score in the tasks that cut, or in actors that hold a GPU each."""
        config, floor = self.config, self.config.keep_image_score
        keep_image_score = self.decision.threshold if floor is None else floor
        scoring = (self.decision.target, keep_image_score, config.random_share, config.bfloat16)
        images = self._images(publication.location)
        rendered = [asdict(self.config)[name] for name in _DECIDES_PIXELS]
        write_units(
            units,
            ScoreUnit,
            (images, self.classifier, *scoring),
            publication,
            SCORE_SCHEMA,
            plan={"files": files, "parents": self.parents, "scoring": scoring, "rendered": rendered},
            **({"first": images, "concurrency": config.gpus, "num_gpus": 1} if config.gpus else {}),
        )

    def check_scored_by(self, scored: Manifest, output: Location) -> None:
        """Refuse to go on with scores of another classifier or target."""
        asked = {"target": self.decision.target, "random_share": self.config.random_share}
        if scored.parents != self.parents or scored.lineage != asked:
            raise PublishError(
                f"{output.uri} holds scores of another classifier, target, survey or random share. "
                "Give another --output, or delete it to scan again."
            )

    def hand_over(self, output: Location, scored: Manifest, place: Location, run: Run) -> Manifest:
        """Publish the best sources as tables, as a page to grade them on, and as a report."""
        config = self.config
        return HandOver(
            scores=output,
            scored=scored,
            classifier=self.classifier,
            model_id=self.manifest.fingerprint,
            decision=self.decision,
            max_candidates=config.max_candidates,
            number=config.aim.number,
            survey=config.location(config.galaxies or config.catalogue).uri,
            survey_prevalence=config.survey_prevalence,
            known=config.location(config.known) if config.known else None,
            known_columns=config.known_columns,
            match_radius_arcsec=config.match_radius_arcsec,
        ).publish(place, config.resolved(), run)


PRESETS = {
    "laptop": Preset("the survey of this pipeline", ScanConfig()),
    "debug": Preset(
        "small units of work, and the best dozen whatever they score: a debug classifier knows nothing",
        ScanConfig(batch_size=32, rows_per_task=128, aim=Aim(number=12)),
    ),
}
