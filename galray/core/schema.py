"""The words of galray's tables: the GZ2 decision tree, and the schema of every table written.

The decision tree is that of Galaxy Zoo 2 (Willett et al. 2013, MNRAS 435, 2835, Table 2).
`ANSWERS` fixes the order of the 37 vote fractions everywhere: in shards, tokens and heads.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Answer:
    """One answer of the GZ2 decision tree.

    Attributes
    ----------
    name : str
        galray's short name, unique over the tree, as used in expressions and recipes.
    column : str
        The stem of the published columns, e.g. ``t08_odd_feature_a38_dust_lane``.
    leads_to : str or None
        The question that a volunteer is asked next; None ends the classification.
    """

    name: str
    column: str
    leads_to: str | None


@dataclass(frozen=True)
class Question:
    """One question of the GZ2 decision tree, with its answers in published order."""

    name: str
    answers: tuple[Answer, ...]


def _question(name: str, stem: str, *answers: tuple[str, str, str | None]) -> Question:
    return Question(name, tuple(Answer(n, f"{stem}_{column}", to) for n, column, to in answers))


# fmt: off
DECISION_TREE: tuple[Question, ...] = (
    _question("smooth_or_features", "t01_smooth_or_features",
              ("smooth", "a01_smooth", "rounded"),
              ("features_or_disk", "a02_features_or_disk", "edge_on"),
              ("star_or_artifact", "a03_star_or_artifact", None)),
    _question("edge_on", "t02_edgeon",
              ("edge_on", "a04_yes", "bulge_shape"),
              ("not_edge_on", "a05_no", "bar")),
    _question("bar", "t03_bar",
              ("bar", "a06_bar", "spiral"),
              ("no_bar", "a07_no_bar", "spiral")),
    _question("spiral", "t04_spiral",
              ("spiral", "a08_spiral", "arms_winding"),
              ("no_spiral", "a09_no_spiral", "bulge_prominence")),
    _question("bulge_prominence", "t05_bulge_prominence",
              ("no_bulge", "a10_no_bulge", "odd"),
              ("just_noticeable_bulge", "a11_just_noticeable", "odd"),
              ("obvious_bulge", "a12_obvious", "odd"),
              ("dominant_bulge", "a13_dominant", "odd")),
    _question("odd", "t06_odd",
              ("odd", "a14_yes", "odd_feature"),
              ("not_odd", "a15_no", None)),
    _question("rounded", "t07_rounded",
              ("completely_round", "a16_completely_round", "odd"),
              ("in_between", "a17_in_between", "odd"),
              ("cigar_shaped", "a18_cigar_shaped", "odd")),
    _question("odd_feature", "t08_odd_feature",
              ("ring", "a19_ring", None),
              ("lens_or_arc", "a20_lens_or_arc", None),
              ("disturbed", "a21_disturbed", None),
              ("irregular", "a22_irregular", None),
              ("other", "a23_other", None),
              ("merger", "a24_merger", None),
              ("dust_lane", "a38_dust_lane", None)),
    _question("bulge_shape", "t09_bulge_shape",
              ("rounded_bulge", "a25_rounded", "odd"),
              ("boxy_bulge", "a26_boxy", "odd"),
              ("no_edge_on_bulge", "a27_no_bulge", "odd")),
    _question("arms_winding", "t10_arms_winding",
              ("tight_arms", "a28_tight", "arms_number"),
              ("medium_arms", "a29_medium", "arms_number"),
              ("loose_arms", "a30_loose", "arms_number")),
    _question("arms_number", "t11_arms_number",
              ("one_arm", "a31_1", "bulge_prominence"),
              ("two_arms", "a32_2", "bulge_prominence"),
              ("three_arms", "a33_3", "bulge_prominence"),
              ("four_arms", "a34_4", "bulge_prominence"),
              ("more_than_four_arms", "a36_more_than_4", "bulge_prominence"),
              ("cant_tell_arms", "a37_cant_tell", "bulge_prominence")),
)
# fmt: on

ANSWERS: tuple[Answer, ...] = tuple(a for question in DECISION_TREE for a in question.answers)
ANSWER_NAMES: tuple[str, ...] = tuple(answer.name for answer in ANSWERS)
ANSWER_INDEX: dict[str, int] = {name: i for i, name in enumerate(ANSWER_NAMES)}
QUESTION_INDEX: dict[str, int] = {question.name: i for i, question in enumerate(DECISION_TREE)}
QUESTION_OF_ANSWER: np.ndarray = np.array(
    [q for q, question in enumerate(DECISION_TREE) for _ in question.answers], dtype=np.int64
)
N_ANSWERS = len(ANSWERS)

VOTE_STATISTICS = ("weighted_fraction", "debiased", "fraction")

# What a plain class label says about the tree: GZ2 answers that it implies to be certain.
LABEL_ANSWERS: dict[str, tuple[str, ...]] = {
    "completely_round_smooth": ("smooth", "completely_round"),
    "in_between_smooth": ("smooth", "in_between"),
    "cigar_shaped_smooth": ("smooth", "cigar_shaped"),
    "edge_on": ("features_or_disk", "edge_on"),
    "spiral": ("features_or_disk", "not_edge_on", "spiral"),
    "dust_lane_early_type": ("smooth", "odd", "dust_lane"),
}

GALAXY_SCHEMA = pa.schema(
    [
        pa.field("galaxy_id", pa.int64(), nullable=False),
        pa.field("survey", pa.string(), nullable=False),
        pa.field("ra", pa.float64()),
        pa.field("dec", pa.float64()),
        pa.field("votes", pa.list_(pa.float32(), N_ANSWERS), nullable=False),
        pa.field("classifications", pa.int32()),
        pa.field("label", pa.string()),
        pa.field("image", pa.binary(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("provenance", pa.string(), nullable=False),
    ]
)

REJECT_SCHEMA = pa.schema(
    [
        pa.field("row", pa.int64()),
        pa.field("id_text", pa.string()),
        pa.field("item", pa.string()),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("detail", pa.string(), nullable=False),
    ]
)

# What may spoil a cutout; bits of the column `flags`.
CUTOUT_FLAGS: dict[str, int] = {
    "edge": 1,  # padded beyond its tile
    "bad_pixels": 2,  # pixels missing or blank
    "saturated": 4,  # a pixel of a band at or above its saturation
    "blended": 8,  # another source of the catalogue near the centre, on the same tile
}
_FLAGS_TOLD = ", ".join(f"{bit} {name.replace('_', ' ')}" for name, bit in CUTOUT_FLAGS.items())
_FLAGS_TOLD += " on its tile"  # of blended, the last: neighbours on the next tile are not looked at

SCORE_SCHEMA = pa.schema(
    [
        pa.field("galaxy_id", pa.int64(), nullable=False),
        pa.field("ra", pa.float64(), metadata={"unit": "deg", "description": "right ascension (J2000)"}),
        pa.field("dec", pa.float64(), metadata={"unit": "deg", "description": "declination (J2000)"}),
        pa.field("tile", pa.string(), metadata={"description": "where the cutout was taken from"}),
        pa.field(
            "score", pa.float32(), nullable=False, metadata={"description": "classifier output in [0, 1]"}
        ),
        pa.field(
            "score_sd",
            pa.float32(),
            metadata={"description": "standard deviation of the score over turns and classifiers"},
        ),
        pa.field("early_type", pa.float32(), metadata={"description": "probability of an early type"}),
        pa.field("flags", pa.int32(), nullable=False, metadata={"description": f"sum of {_FLAGS_TOLD}"}),
        pa.field(
            "radius_arcsec", pa.float32(), metadata={"unit": "arcsec", "description": "catalogue radius"}
        ),
        pa.field("magnitude", pa.float32(), metadata={"unit": "mag", "description": "catalogue magnitude"}),
        pa.field(
            "random_arm",
            pa.bool_(),
            nullable=False,
            metadata={"description": "drawn regardless of score, by a hash of the id"},
        ),
        pa.field("image", pa.binary(), metadata={"description": "JPEG cutout, kept for high scores only"}),
    ]
)

CANDIDATE_SCHEMA = pa.schema(
    [
        pa.field(
            "rank", pa.int32(), metadata={"description": "1 is the best; null for the random arm alone"}
        ),
        *(field for field in SCORE_SCHEMA if field.name != "image"),
        pa.field(
            "probability",
            pa.float32(),
            nullable=False,
            metadata={"description": "score corrected to the survey's prevalence"},
        ),
        pa.field("flag_names", pa.string(), nullable=False, metadata={"description": "flags, spelled out"}),
        pa.field("known_object", pa.string(), metadata={"description": "nearest object of the known list"}),
        pa.field(
            "known_separation",
            pa.float64(),
            metadata={"unit": "arcsec", "description": "distance to known_object"},
        ),
        pa.field("viewer_url", pa.string(), metadata={"description": "Legacy Survey sky viewer"}),
        pa.field("sdss_url", pa.string(), metadata={"description": "SDSS navigate tool"}),
        pa.field("aladin_url", pa.string(), metadata={"description": "Aladin Lite"}),
        pa.field("model_id", pa.string(), metadata={"description": "fingerprint of the classifier"}),
        pa.field("run_id", pa.string(), metadata={"description": "fingerprint of the scan"}),
        pa.field("image", pa.binary(), metadata={"description": "JPEG cutout"}),
    ]
)

GRADES = ("A", "B", "C", "reject")
GRADE_SCHEMA = pa.schema(
    [
        pa.field("galaxy_id", pa.int64(), nullable=False),
        pa.field("grade", pa.string(), nullable=False),
        pa.field("grader", pa.string(), nullable=False),
        pa.field("graded_utc", pa.string()),
    ]
)

# The closed list of reasons for setting a row aside; each says what to mend.
REJECT_REASONS: dict[str, str] = {
    "malformed_row": "the row has too many or too few cells",
    "bad_id": "the id is empty, not an integer, or was rounded by a floating-point column",
    "duplicate_id": "an earlier row has the same id",
    "fraction_out_of_range": "a vote fraction lies outside [0, 1]",
    "unmapped_galaxy": "the filename mapping has no row for this galaxy",
    "missing_image": "no image stands where the table says",
    "image_without_row": "no row of the table names this image",
    "not_an_image": "the bytes are not a JPEG or PNG image",
    "truncated_image": "the image ends before its data do",
    "wrong_size": "the image's size is not the expected one",
    "wrong_mode": "the image is not 8-bit RGB (CMYK, greyscale, palette or 16-bit)",
    "decompression_bomb": "the image claims more pixels than are safe to decode",
    "unsafe_path": "the archive entry climbs out of its folder",
    "unreadable_file": "the file could not be read",
    "outside_tile": "the source's cutout lies outside its tile",
    "bad_position": "the source's position is missing or not on the sky",
    "missing_radius": "cutouts are scaled to the source's radius, which is missing or not positive",
    "grade_without_candidate": "the graded galaxy is not among the candidates",
}

SPLITS = ("train", "validation", "test")
_SPLIT_EDGES = np.array([0.8, 0.9])


def split_of(galaxy_id: np.ndarray) -> np.ndarray:
    """Return the split of each galaxy: a stable hash of its id, never a random draw.

    Parameters
    ----------
    galaxy_id : ndarray of int64, shape (n,)

    Returns
    -------
    ndarray of str, shape (n,)
        ``train`` (80%), ``validation`` (10%) or ``test`` (10%); the same on every machine,
        in every version, whatever else is in the table.
    """
    uniform = uniform_of(galaxy_id)
    return np.asarray(SPLITS)[np.searchsorted(_SPLIT_EDGES, uniform, side="right")]


def uniform_of(galaxy_id: np.ndarray, stream: int = 0) -> np.ndarray:
    """Return a number in [0, 1) that follows from each id alone, as if drawn evenly.

    Parameters
    ----------
    galaxy_id : ndarray of int64, shape (n,)
    stream : int
        Numbers of different streams are independent; 0 decides splits.

    Returns
    -------
    ndarray of float64, shape (n,)

    Notes
    -----
    SplitMix64 (Steele et al. 2014) spreads neighbouring ids evenly.
    """
    with np.errstate(over="ignore"):
        z = np.asarray(galaxy_id, dtype=np.int64).view(np.uint64) ^ _mixed(np.array([stream], np.uint64))
        return (_mixed(z + np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mixed(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def votes_of_label(label: str | None) -> np.ndarray:
    """Return the votes that a class label implies; NaN where it says nothing.

    Parameters
    ----------
    label : str or None
        A key of `LABEL_ANSWERS`; any other label, or None, says nothing about the tree.

    Returns
    -------
    ndarray of float32, shape (37,)
        1 for the implied answers, 0 for the other answers of those questions, NaN elsewhere.
    """
    votes = np.full(N_ANSWERS, np.nan, dtype=np.float32)
    for name in LABEL_ANSWERS.get(label or "", ()):
        index = ANSWER_INDEX[name]
        votes[QUESTION_OF_ANSWER[index] == QUESTION_OF_ANSWER] = 0.0
        votes[index] = 1.0
    return votes


def fingerprint(content: str | bytes) -> str:
    """Return 16 hexadecimal digits that identify `content`."""
    data = content.encode() if isinstance(content, str) else content
    return hashlib.sha256(data).hexdigest()[:16]
