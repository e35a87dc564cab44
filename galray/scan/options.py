"""What a scan is told: which survey, which classifier, and what makes a candidate."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.util import find_spec

from galray.core.config import JobConfig, Preset, require
from galray.core.precision import StatedPrecision
from galray.data.expressions import Expression
from galray.data.images import BANDS, Rendering
from galray.scan.aim import Aim
from galray.scan.columns import Columns
from galray.scan.engine import Engine


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
    """Folder or bucket prefix of the tiles."""
    tile_files: str = "{tile}.fits"
    """A tile's file, or '{tile}-{band}.fits' for one file a band; .gz, .bz2 and .fz as well."""
    bands: tuple[str, str, str] = BANDS
    """What the tiles call g, r and i; one band may stand for several."""
    saturation: float | None = None
    """Flux from which on a pixel is saturated, where the tiles' headers have no SATURATE."""
    blend_radius_arcsec: float = 5.0
    """A source this near to another one of the catalogue, on its tile, is flagged as blended; 0 for none."""
    galaxies: str = ""
    """Instead of catalogue and tiles: published galaxy shards, cutouts already made."""
    classifier: str = "{root}/classifier"
    ensemble: tuple[str, ...] = ()
    """Further classifiers of the same target, judged on the same galaxies: the score is the mean of all, and
    threshold and calibration are tuned on the mean of what they made of their validation galaxies."""
    turns: bool = False
    """Score each cutout in its eight symmetries: the mean, and the standard deviation, at eight times the
    cost; threshold and calibration are tuned on means of turned validation galaxies."""
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
    hats: bool = False
    """Write the candidates as a HATS catalogue too, for LSDB (pip install 'galray[hats]')."""
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
    """Side of the cutouts in the tiles' pixels, before they are resampled for the classifier; 0 takes its
    size."""
    cutout_arcsec: float = 0.0
    """Side of the cutouts on the sky instead, whatever the tiles' pixels: 25.3 is 64 px of SDSS's."""
    cutout_radii: float = 0.0
    """Scale the cutouts to so many of each source's radii instead; GZ2 showed 8.48 Petrosian ones."""
    batch_size: int = 128
    """Images that the classifier takes at once."""
    rows_per_task: int = 1024
    """Sources of one unit of work, and of one shard of scores, but whole tiles of up to eight times as
    many; for a billion sources, 65536."""
    gpus: int = 0
    """Actors that score, one GPU each; 0 scores on the CPUs, in the tasks that cut."""
    engine: str = "torch"
    """What runs the classifier: torch, compiled (by torch, for GPUs) or openvino (for CPUs); all are checked
    against torch at the start."""
    precision: StatedPrecision = "float32"
    """bfloat16, where the hardware computes in it, runs larger classifiers twice as fast; scores move by
    about 0.001."""

    def __post_init__(self) -> None:
        for name in ("max_candidates", "batch_size", "rows_per_task"):
            value = getattr(self, name)
            require(value >= 1, f"--{name.replace('_', '-')} is {value}; give at least 1.")
        for name in ("cutout_px", "cutout_arcsec", "cutout_radii", "gpus", "blend_radius_arcsec"):
            require(getattr(self, name) >= 0, f"--{name.replace('_', '-')} cannot be negative.")
        require(self.saturation is None or self.saturation > 0, "--saturation must be positive.")
        require(
            len({self.classifier, *self.ensemble}) == 1 + len(self.ensemble),
            "--ensemble names a classifier twice, or that of --classifier. Name each once.",
        )
        floor, prevalence = self.keep_image_score, self.survey_prevalence
        require(floor is None or 0 <= floor <= 1, f"--keep-image-score {floor} is not in [0, 1].")
        require(0 <= self.random_share < 1, f"--random-share {self.random_share} is not in [0, 1).")
        require(self.match_radius_arcsec > 0, "--match-radius-arcsec must be positive.")
        require(
            prevalence is None or 0 < prevalence < 1, f"--survey-prevalence {prevalence} is not in (0, 1)."
        )
        require(
            sum(map(bool, (self.cutout_px, self.cutout_arcsec, self.cutout_radii))) < 2,
            "Give one of --cutout-px, --cutout-arcsec and --cutout-radii.",
        )
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
        require(
            not (self.gpus and self.engine == "openvino"),
            "--engine openvino runs on CPUs; with --gpus, use torch or compiled.",
        )
        require(
            bool(self.gpus) or self.engine != "compiled",
            "--engine compiled takes each process minutes on a CPU, which never come back; give --gpus.",
        )
        require(
            not self.hats or find_spec("lsdb") is not None,
            "--hats needs LSDB: pip install 'galray[hats]', or leave it out.",
        )
        self.selection()
        self.runs_on()

    def selection(self) -> Expression | None:
        """Return which rows are scanned; None for all."""
        return Expression(self.select) if self.select else None

    def runs_on(self) -> Engine:
        """Return what runs the classifier."""
        return Engine(self.engine, self.precision)


PRESETS = {
    "laptop": Preset("the survey of this pipeline", ScanConfig()),
    "debug": Preset(
        "small units of work, and the best dozen whatever they score: a debug classifier knows nothing",
        ScanConfig(batch_size=32, rows_per_task=128, aim=Aim(number=12)),
    ),
}
