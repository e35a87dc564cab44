"""A survey -> scores -> ranked candidates, on Ray Data.

The catalogue streams; a block of its rows is the unit of work. One task reads the block's tiles, cuts
and colours its sources, scores them and writes them as one shard, so that pixels never leave the
process. What cannot be cut or decoded becomes a reject: rows in = scores + rejects.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
import ray
from pyarrow import fs
from ray.data import Dataset

from galray.classifier import network
from galray.classifier.decision import Decision
from galray.core.cluster import say
from galray.core.config import JobConfig, Preset, require
from galray.core.errors import ConfigError, InputError, MissingColumnError, PublishError, nearest
from galray.core.manifest import Manifest, local_folder, publish, standing
from galray.core.schema import SCORE_SCHEMA
from galray.core.shards import read_shards, rejects_told, shard_paths, write_shards
from galray.core.storage import Location
from galray.core.tracking import Run, track
from galray.data.images import Rendering
from galray.scan.candidates import select, tables
from galray.scan.page import page
from galray.scan.pixels import CATALOGUE_COLUMNS, GALAXY_COLUMNS, CutSources, DecodeGalaxies
from galray.scan.scoring import Score, score_in_task

_LARGEST_TRACKED_PAGE_BYTES = 20 << 20


@dataclass(frozen=True, kw_only=True)
class ScanConfig(JobConfig):
    """Which survey to scan, with which classifier, and what makes a candidate."""

    catalogue: str = "{root}/survey/catalogue"
    """Parquet file or folder with galaxy_id, ra, dec, tile; best ordered by tile."""
    tiles: str = "{root}/survey/tiles"
    """Folder or s3:// prefix of the tiles that the catalogue names."""
    tile_suffix: str = ".fits"
    """What follows a tile's name in its file's: .fits, .fits.gz, .fits.fz."""
    galaxies: str = ""
    """Instead of catalogue and tiles: published galaxy shards, cutouts already made."""
    classifier: str = "{root}/classifier"
    output: str = "{root}/scan"
    candidates: str = "{root}/candidates"
    target: str = ""
    """The rare target that is looked for; empty takes the one the classifier was tuned for."""
    threshold: float | None = None
    """Lowest score of a candidate; left out, the classifier's own."""
    survey_prevalence: float | None = None
    """Expected share of targets in the survey; corrects the candidates' probabilities."""
    max_candidates: int = 2000
    """Keep at most so many of the best."""
    keep_image_score: float | None = None
    """Keep the cutouts of sources that score at least this; left out, of the candidates."""
    rendering: Rendering = field(default_factory=Rendering)
    """How flux becomes colour; must be what the training images had."""
    cutout_px: int = 0
    """Side of the cutouts before they are resampled for the classifier; 0 takes its size."""
    batch_size: int = 128
    """Images that the classifier takes at once."""
    rows_per_task: int = 1024
    """Catalogue rows of one unit of work, and of one shard of scores."""
    gpus: int = 0
    """Actors that score, one GPU each; 0 scores on the CPUs, in the tasks that cut."""
    bfloat16: bool = False
    """Compute in bfloat16: larger classifiers run twice as fast, scores move by about 0.001."""

    def __post_init__(self) -> None:
        for name in ("max_candidates", "batch_size", "rows_per_task"):
            value = getattr(self, name)
            require(value >= 1, f"--{name.replace('_', '-')} is {value}; give at least 1.")
        for name in ("cutout_px", "gpus"):
            require(getattr(self, name) >= 0, f"--{name.replace('_', '-')} cannot be negative.")
        for name in ("threshold", "keep_image_score"):
            value = getattr(self, name)
            require(value is None or 0 <= value <= 1, f"--{name.replace('_', '-')} {value} is not in [0, 1].")
        prevalence = self.survey_prevalence
        require(
            prevalence is None or 0 < prevalence < 1, f"--survey-prevalence {prevalence} is not in (0, 1)."
        )
        require(
            self.threshold is None
            or self.keep_image_score is None
            or self.keep_image_score <= self.threshold,
            "--keep-image-score above --threshold leaves candidates without their cutouts. Lower it.",
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
        decision = decide(config, Decision.read(classifier), settings)
        return cls(config, classifier, manifest, settings, decision)

    @property
    def parents(self) -> dict[str, str]:
        parents = {self.classifier.uri: self.manifest.fingerprint}
        if self.config.galaxies:
            galaxies = self.config.location(self.config.galaxies)
            parents[galaxies.uri] = Manifest.read(galaxies, "galaxies").fingerprint
        return parents

    def sources(self) -> Dataset:
        """Stream the survey's sources with their images: read, then cut or decode."""
        config, size_px = self.config, self.network.size_px
        if config.galaxies:
            rows = read_shards(config.location(config.galaxies), "galaxies", columns=GALAXY_COLUMNS)
            images = DecodeGalaxies(size_px)
        else:
            rows = read_sources(config.location(config.catalogue))
            tiles = config.location(config.tiles)
            images = CutSources(
                tiles, config.tile_suffix, config.cutout_px or size_px, size_px, config.rendering
            )
        blocks = rows.repartition(target_num_rows_per_block=config.rows_per_task)
        return blocks.map_batches(images.__call__, batch_size=config.batch_size, batch_format="pyarrow")

    def score(self, output: Location, run: Run) -> Manifest:
        """Score all sources and publish the scores."""
        config, started_s = self.config, time.monotonic()
        sources = self.sources()
        with publish(output, "scores", config.resolved(), self.parents) as publication:
            scored = self._scored(sources)
            write_shards(scored, publication, SCORE_SCHEMA, rows_per_shard=config.rows_per_task)
            publication.lineage |= {"target": self.decision.target}
            rate = publication.counts["rows_in"] / (time.monotonic() - started_s)
            run.metrics({**publication.counts, "sources_per_s": rate})
        counts = publication.counts
        told = f"{counts['rows_in']} sources, {counts['rows_out']} scored, {rejects_told(counts)}"
        say(f"scan: {told}, {rate:.0f} sources/s -> {output.uri}")
        return Manifest.read(output)

    def _scored(self, sources: Dataset) -> Dataset:
        """Score in the tasks that cut, or in actors that hold a GPU each."""
        config, floor = self.config, self.config.keep_image_score
        keep_image_score = self.decision.threshold if floor is None else floor
        arguments = (self.classifier, self.decision.target, keep_image_score, config.bfloat16)
        if not config.gpus:
            return sources.map_batches(
                score_in_task, fn_args=arguments, batch_size=config.batch_size, batch_format="pyarrow"
            )
        return sources.map_batches(
            Score,
            fn_constructor_args=arguments,
            batch_size=config.batch_size,
            batch_format="pyarrow",
            concurrency=config.gpus,
            num_gpus=1,
        )

    def check_scored_by(self, scored: Manifest, output: Location) -> None:
        """Refuse to go on with scores of another classifier or target."""
        same = scored.parents == self.parents and scored.lineage.get("target") == self.decision.target
        if not same:
            raise PublishError(
                f"{output.uri} holds scores of another classifier, target or survey. "
                "Give another --output, or delete it to scan again."
            )

    def hand_over(self, output: Location, scored: Manifest, place: Location, run: Run) -> Manifest:
        """Publish the best sources as tables and as a page to grade them on."""
        best, above = best_scores(output, self.decision.threshold, self.config.max_candidates)
        chosen = select(
            best,
            threshold=self.decision.threshold,
            count=self.config.max_candidates,
            train_prevalence=self.decision.train_prevalence,
            survey_prevalence=self.config.survey_prevalence,
        )
        html = page(
            chosen,
            title=f"{self.decision.target.replace('_', ' ').capitalize()} candidates",
            run_id=scored.fingerprint,
            facts=self._facts(scored, above),
        )
        with publish(
            place, "candidates", self.config.resolved(), {output.uri: scored.fingerprint}
        ) as publication:
            for extension, data in tables(chosen).items():
                publication.write(f"candidates.{extension}", data, len(chosen))
            publication.write("index.html", html)
            publication.lineage |= asdict(self.decision)
            publication.counts |= {"candidates": len(chosen), "above_threshold": above}
        run.metrics(publication.counts)
        if len(html) < _LARGEST_TRACKED_PAGE_BYTES:
            run.text(html, "candidates.html")
        left_out = f", the best of {above} above the threshold" if above > len(chosen) else ""
        say(f"scan: {len(chosen)} candidates{left_out}; grade them on {place.uri}/index.html")
        return Manifest.read(place)

    def _facts(self, scored: Manifest, above: int) -> Mapping[str, str]:
        survey = self.config.galaxies or self.config.catalogue
        return {
            "survey": self.config.location(survey).uri,
            "sources": f"{scored.counts['rows_out']:,}",
            "above threshold": f"{above:,}",
            "threshold": f"{self.decision.threshold:.4g}",
            "classifier": self.manifest.fingerprint,
        }


def decide(config: ScanConfig, tuned: Decision, settings: network.ClassifierConfig) -> Decision:
    """Return what is looked for: the classifier's own decision, or what the options say instead.

    Raises
    ------
    ConfigError
        For a target that the classifier does not know, or one that it has no threshold for.
    """
    target = config.target or tuned.target
    names = settings.target_names
    if target not in names:
        raise ConfigError(
            f"The classifier knows no target {target!r}{nearest(target, names)}; it has {', '.join(names)}."
        )
    if target == tuned.target:
        threshold = tuned.threshold if config.threshold is None else config.threshold
        return Decision(target, threshold, tuned.train_prevalence)
    if config.threshold is None or not settings.prevalence:
        raise ConfigError(f"The classifier was tuned for {tuned.target!r}; {target!r} needs a --threshold.")
    return Decision(target, config.threshold, settings.prevalence[names.index(target)])


def read_sources(location: Location) -> Dataset:
    """Stream a catalogue's ids, positions and tiles.

    Raises
    ------
    MissingColumnError, InputError
        Before any work is done.
    """
    if location.kind() == fs.FileType.NotFound:
        raise InputError(f"{location.uri} does not exist. Check --catalogue.")
    try:
        rows = ray.data.read_parquet(location.path, filesystem=location.filesystem)
        schema = rows.schema()
    except (pa.ArrowInvalid, ValueError) as error:
        raise InputError(f"{location.uri} is no Parquet catalogue: {error}. Check --catalogue.") from error
    found = schema.names if schema else []
    missing = [name for name in CATALOGUE_COLUMNS if name not in found]
    if missing:
        raise MissingColumnError(location.uri, missing, found)
    return rows.select_columns(list(CATALOGUE_COLUMNS))


def best_scores(scores: Location, threshold: float, count: int) -> tuple[pa.Table, int]:
    """Read the best sources back from a scan, and no others.

    Returns
    -------
    best : pyarrow.Table
        `galray.core.schema.SCORE_SCHEMA`; those at or above the threshold, but at most `count`, and
        any that score the same as the last of them.
    above : int
        How many are at or above the threshold.
    """
    paths = shard_paths(scores, "scores")
    shards = pyarrow.dataset.dataset(paths, SCORE_SCHEMA, format="parquet", filesystem=scores.filesystem)
    floor = np.float32(threshold)
    high = shards.to_table(columns=["score"], filter=pc.field("score") >= floor)["score"].to_numpy()
    if len(high) > count:
        floor = np.partition(high, -count)[-count]
    return shards.to_table(filter=pc.field("score") >= floor), len(high)


PRESETS = {
    "laptop": Preset("the survey of this pipeline", ScanConfig()),
    "debug": Preset(
        "small units of work, and the best dozen whatever they score: a debug classifier knows nothing",
        ScanConfig(batch_size=32, rows_per_task=128, threshold=0.0, max_candidates=12),
    ),
}
