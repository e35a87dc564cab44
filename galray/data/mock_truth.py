"""What a mock galaxy is: its kind, light, dust and neighbours, drawn from a seed and its index.

A galaxy's parameters depend on nothing else, so that it is the same whichever process draws it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from galray.core.errors import ConfigError
from galray.data.images import Rendering
from galray.data.mock_light import NEARBY_SEEING, Truth, lane_contrast

KINDS = ("early_type", "cigar", "edge_on", "spiral", "barred_spiral")
_LABELS = {
    "cigar": "cigar_shaped_smooth",
    "edge_on": "edge_on",
    "spiral": "spiral",
    "barred_spiral": "spiral",
}


_FIRST_ID = 587_722_981_741_363_323  # an SDSS DR7 objID; all ids lie above it
_ID_STRIDE = 37  # float64 keeps multiples of 128 here: neighbours would collide in it
_SEED_STRIDE, _TILE_STRIDE, _TILE_BLOCK = 10_000_000_000, 1_000_000_000_000_000, 100_000

_TRUTH_STREAM = 0

_LANE_TAU_R = {"early_type": 1.5, "edge_on": 1.1}

# fmt: off
_NUMBERS = (
    # the galaxy as a whole
    "mag_r", "g_r", "r_i", "gradient_mag", "r_half_arcsec", "q", "angle_deg", "sersic_n",
    # its parts
    "bulge_fraction", "bulge_r_half_arcsec", "bulge_reddening_mag",
    "arm_count", "arm_pitch_deg", "arm_phase_deg", "arm_strength", "handedness", "clumpiness",
    "bar_strength", "bar_length_arcsec", "bar_angle_deg",
    "ring_strength", "shell_strength", "disturbance", "disturbance_angle_deg",
    # its dust lane, none where dust_tau_r is 0
    "dust_tau_r", "dust_angle_deg", "dust_offset_arcsec", "dust_width_arcsec", "dust_length_arcsec",
    "dust_warp", "lane_contrast", "lane_contrast_nearby",
    # an overlapping neighbour, none where neighbour_mag is 0, and the seeing
    "neighbour_mag", "neighbour_x_arcsec", "neighbour_y_arcsec", "neighbour_size_arcsec",
    "psf_fwhm_arcsec",
)
# fmt: on

TRUTH_SCHEMA = pa.schema(
    [
        ("galaxy_id", pa.int64()),
        ("ra", pa.float64()),
        ("dec", pa.float64()),
        ("kind", pa.string()),
        ("label", pa.string()),
        ("dust_lane_early_type", pa.bool_()),
        *((name, pa.float64()) for name in _NUMBERS),
        ("neighbour_is_star", pa.bool_()),
    ]
)


@dataclass(frozen=True)
class MockConfig:
    """What the mock survey is like.

    Attributes
    ----------
    seed : int
        Of everything random.
    size_px : int
        Side of the labelled cutouts.
    pixel_scale_arcsec : float
        Of cutouts and tiles; 0.396 is SDSS.
    early_type, cigar, edge_on, spiral, barred_spiral : float
        Relative numbers of each kind.
    dust_lane_fraction_early : float
        Share of early types that have a dust lane: the rare objects.
    dust_lane_fraction_edge_on : float
        Share of edge-on disks that have one along their plane.
    great_bulge_fraction_edge_on : float
        Share of edge-on disks in a bulge that outshines them, as the Sombrero's.
    mag_r_range : tuple of float
        Bright and faint limits; counts rise towards the faint one.
    n_volunteers : tuple of int
        Least and most volunteers per galaxy.
    tile_size_px : int
        Side of a survey tile.
    tile_spacing_px : int
        Mean distance between the catalogue's sources on a tile.
    rendering : Rendering
        From flux to colours.
    """

    seed: int = 0
    size_px: int = 64
    pixel_scale_arcsec: float = 0.396
    early_type: float = 0.42
    cigar: float = 0.08
    edge_on: float = 0.14
    spiral: float = 0.22
    barred_spiral: float = 0.14
    dust_lane_fraction_early: float = 0.03
    dust_lane_fraction_edge_on: float = 0.65
    great_bulge_fraction_edge_on: float = 0.0
    mag_r_range: tuple[float, float] = (14.0, 17.3)
    n_volunteers: tuple[int, int] = (25, 55)
    tile_size_px: int = 1024
    tile_spacing_px: int = 60
    rendering: Rendering = field(default_factory=Rendering)

    def __post_init__(self) -> None:
        if min(self.kind_shares) < 0 or sum(self.kind_shares) <= 0:
            raise ConfigError(f"the shares of the kinds must be positive, not {self.kind_shares}.")
        shares = ("dust_lane_fraction_early", "dust_lane_fraction_edge_on", "great_bulge_fraction_edge_on")
        for name in shares:
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} must lie in [0, 1], not {getattr(self, name)}.")
        if not 0 < self.n_volunteers[0] <= self.n_volunteers[1]:
            raise ConfigError(f"n_volunteers must rise from at least 1, not {self.n_volunteers}.")
        if self.mag_r_range[0] >= self.mag_r_range[1]:
            raise ConfigError(f"mag_r_range must go from bright to faint, not {self.mag_r_range}.")
        if self.size_px < 16 or self.tile_spacing_px > self.tile_size_px:
            raise ConfigError("size_px must be 16 or more, and tile_size_px more than tile_spacing_px.")

    def lane_fraction(self, kind: str) -> float:
        """Share of a kind's galaxies that have a dust lane."""
        lanes = {"early_type": self.dust_lane_fraction_early, "edge_on": self.dust_lane_fraction_edge_on}
        return lanes.get(kind, 0.0)

    @property
    def kind_shares(self) -> tuple[float, ...]:
        """Relative numbers of the KINDS."""
        return tuple(getattr(self, kind) for kind in KINDS)


def draw_truth(config: MockConfig, start: int, stop: int) -> pa.Table:
    """Draw labelled galaxies `start` to `stop` (excluded); galaxy i is the same in any range.

    Returns
    -------
    Table of TRUTH_SCHEMA
    """
    return _draw(config, range(start, stop))


def asset_ids(truth: pa.Table) -> np.ndarray:
    """Return the small number that names each labelled galaxy's image file; int64, shape (n,)."""
    return (truth["galaxy_id"].to_numpy() - _FIRST_ID) % _SEED_STRIDE // _ID_STRIDE + 1


def draw_tile_truth(config: MockConfig, tile_index: int, n: int, psf_fwhm_arcsec: float) -> pa.Table:
    """Draw the `n` galaxies of a survey tile, none of them a labelled one; Table of TRUTH_SCHEMA."""
    first = _TILE_BLOCK * tile_index
    return _draw(config, range(first, first + n), tiled=True, fwhm=psf_fwhm_arcsec)


def _draw(config: MockConfig, indices: range, *, tiled: bool = False, fwhm: float | None = None) -> pa.Table:
    rows = [_draw_galaxy(config, index, tiled=tiled, fwhm=fwhm) for index in indices]
    return pa.Table.from_pylist(rows, schema=TRUTH_SCHEMA)


def _galaxy_id(config: MockConfig, index: int, *, tiled: bool) -> int:
    block = (config.seed % 10_000) * _SEED_STRIDE + (_TILE_STRIDE if tiled else 0)
    return _FIRST_ID + block + index * _ID_STRIDE


def draw_seeing(rng: np.random.Generator) -> float:
    """Return the seeing of one exposure: FWHM in arcsec, about 1.25."""
    return float(np.clip(rng.lognormal(np.log(1.25), 0.12), 0.95, 1.8))


def _draw_galaxy(config: MockConfig, index: int, *, tiled: bool, fwhm: float | None) -> dict[str, Any]:
    """Draw one galaxy's truth: everything that its picture and its votes follow from."""
    galaxy_id = _galaxy_id(config, index, tiled=tiled)
    rng = np.random.default_rng((config.seed, _TRUTH_STREAM, galaxy_id))
    kind = KINDS[rng.choice(len(KINDS), p=np.array(config.kind_shares) / sum(config.kind_shares))]
    bright, faint = config.mag_r_range
    # Euclidean counts, N ~ 10^(0.6 m), flattened by the survey's own selection.
    slope = 0.45 * np.log(10)
    mag_r = faint + np.log(rng.uniform(np.exp(slope * (bright - faint)), 1)) / slope
    size = 10 ** (0.45 - 0.10 * (mag_r - 16.5) + rng.normal(0, 0.15)) * _SIZE_FACTOR[kind]
    row: dict[str, Any] = dict.fromkeys(_NUMBERS, 0.0)
    row |= {
        "galaxy_id": galaxy_id,
        "ra": rng.uniform(120, 240),
        "dec": np.degrees(np.arcsin(rng.uniform(0, 0.87))),
        "kind": kind,
        "mag_r": mag_r,
        "r_half_arcsec": float(np.clip(size, 1.0, 6.0 if kind in ("edge_on", "cigar") else 4.8)),
        "angle_deg": rng.uniform(0, 180),
        "psf_fwhm_arcsec": draw_seeing(rng) if fwhm is None else fwhm,
    }
    if rng.random() < config.lane_fraction(kind):
        row["dust_tau_r"] = rng.lognormal(np.log(_LANE_TAU_R[kind]), 0.5)
    row |= _DRAW_KIND[kind](row, rng)
    great_bulges = config.great_bulge_fraction_edge_on if kind == "edge_on" else 0.0
    if great_bulges and rng.random() < great_bulges:
        row |= _draw_great_bulge(row, rng)
    row |= _draw_neighbour(row, rng)
    early_lane = kind == "early_type" and row["dust_tau_r"] > 0
    contrasts = {
        "lane_contrast": lane_contrast(row, config.pixel_scale_arcsec),
        "lane_contrast_nearby": lane_contrast(row, config.pixel_scale_arcsec, NEARBY_SEEING),
    }
    return row | contrasts | {"dust_lane_early_type": early_lane, "label": _label(row)}


_SIZE_FACTOR = {"early_type": 0.9, "cigar": 1.2, "edge_on": 1.15, "spiral": 1.25, "barred_spiral": 1.25}


def _label(row: Truth) -> str:
    """Return the class that a perfect observer would give."""
    if row["kind"] != "early_type":
        return _LABELS[row["kind"]]
    if row["dust_tau_r"] > 0:
        return "dust_lane_early_type"
    return "completely_round_smooth" if row["q"] > 0.82 else "in_between_smooth"


def _red_colours(rng: np.random.Generator) -> dict[str, float]:
    g_r = rng.normal(0.86, 0.07)
    return {"g_r": g_r, "r_i": 0.38 + 0.35 * (g_r - 0.86) + rng.normal(0, 0.02)}


def _blue_colours(rng: np.random.Generator, middle: float) -> dict[str, float]:
    g_r = np.clip(rng.normal(middle, 0.11), 0.25, 0.95)
    return {"g_r": g_r, "r_i": 0.10 + 0.36 * g_r + rng.normal(0, 0.03)}


def _draw_early(row: Truth, rng: np.random.Generator) -> dict[str, float]:
    peculiar = rng.random()
    drawn = {
        **_red_colours(rng),
        "q": np.clip(rng.beta(4.5, 1.7), 0.42, 0.99),
        "sersic_n": np.clip(rng.lognormal(np.log(3.0), 0.28), 1.8, 6.0),
        "gradient_mag": rng.uniform(0.02, 0.09),
        # Confusers: slightly disturbed ones, and shells.
        "disturbance": rng.uniform(0.06, 0.25) if peculiar < 0.05 else 0.0,
        "disturbance_angle_deg": rng.uniform(0, 360),
        "shell_strength": rng.uniform(0.02, 0.06) if 0.05 < peculiar < 0.09 else 0.0,
    }
    return drawn | (_draw_lane(row, rng) if row["dust_tau_r"] > 0 else {})


def _draw_lane(row: Truth, rng: np.random.Generator) -> dict[str, float]:
    """A lane in an early type was brought by a merger: any angle, offset, bent, not the whole length."""
    r_half = row["r_half_arcsec"]
    return {
        "dust_angle_deg": row["angle_deg"] + rng.choice([0.0, 90.0]) + rng.normal(0, 30),
        "dust_offset_arcsec": rng.normal(0, 0.16) * r_half,
        "dust_width_arcsec": rng.lognormal(np.log(0.15), 0.35) * r_half,
        "dust_length_arcsec": rng.uniform(0.7, 1.9) * r_half,
        "dust_warp": rng.normal(0, 0.15),
    }


def _draw_cigar(row: Truth, rng: np.random.Generator) -> dict[str, float]:
    is_red = rng.random() < 0.6 - 0.12 * (row["mag_r"] - 16.5)  # the brighter, the redder
    return {
        **(_red_colours(rng) if is_red else _blue_colours(rng, 0.58)),
        "q": rng.uniform(0.2, 0.35),
        "sersic_n": rng.uniform(1.0, 2.8),
        "gradient_mag": rng.uniform(0.02, 0.08),
    }


def _draw_edge_on(row: Truth, rng: np.random.Generator) -> dict[str, float]:
    r_half, q = row["r_half_arcsec"], rng.uniform(0.10, 0.24)
    has_bulge, has_dust = rng.random() < 0.75, row["dust_tau_r"] > 0
    drawn = {
        # Without dust it is an S0, red and smooth.
        **(_blue_colours(rng, 0.60) if has_dust or rng.random() < 0.5 else _red_colours(rng)),
        "q": q,
        "bulge_fraction": rng.uniform(0.08, 0.45) if has_bulge else 0.0,
        "bulge_r_half_arcsec": rng.uniform(0.18, 0.32) * r_half,
        "bulge_reddening_mag": rng.uniform(0.1, 0.3),
    }
    lane = {
        "dust_angle_deg": row["angle_deg"] + rng.normal(0, 1.0),
        "dust_offset_arcsec": rng.normal(0, 0.35) * q * r_half,
        "dust_width_arcsec": rng.uniform(0.25, 0.6) * q * r_half,
        "dust_length_arcsec": rng.uniform(1.2, 2.2) * r_half,
        "dust_warp": rng.normal(0, 0.01),
    }
    return drawn | (lane if has_dust else {})


def _draw_great_bulge(row: Truth, rng: np.random.Generator) -> dict[str, float]:
    """A disk that cuts a bulge as large as itself: its lane is seen against the bulge's light."""
    return _red_colours(rng) | {
        "bulge_fraction": rng.uniform(0.5, 0.85),
        "bulge_r_half_arcsec": rng.uniform(0.4, 0.7) * row["r_half_arcsec"],
        "bulge_reddening_mag": rng.uniform(0.0, 0.1),
    }


def _draw_spiral(row: Truth, rng: np.random.Generator) -> dict[str, float]:
    r_half = row["r_half_arcsec"]
    drawn = {
        **_blue_colours(rng, 0.56),
        "q": np.clip(np.hypot(rng.uniform(0.3, 1.0), 0.15), 0.35, 0.98),
        "bulge_fraction": np.clip(rng.beta(1.6, 6.0), 0.02, 0.6),
        "bulge_r_half_arcsec": rng.uniform(0.15, 0.28) * r_half,
        "bulge_reddening_mag": rng.uniform(0.15, 0.4),
        "arm_count": float(rng.choice([1, 2, 3, 4, 5], p=[0.05, 0.60, 0.17, 0.09, 0.09])),
        "arm_pitch_deg": np.clip(rng.normal(19, 6), 8, 36),
        "arm_phase_deg": rng.uniform(0, 360),
        "arm_strength": rng.uniform(0.15, 0.5),
        "handedness": float(rng.choice([-1, 1])),
        "clumpiness": rng.uniform(0.3, 0.9),
        "ring_strength": rng.uniform(0.8, 2.0) if rng.random() < 0.07 else 0.0,
    }
    return drawn


def _draw_barred(row: Truth, rng: np.random.Generator) -> dict[str, float]:
    angle = rng.uniform(0, 180)
    return _draw_spiral(row, rng) | {
        "bar_strength": rng.uniform(0.08, 0.22),
        "bar_length_arcsec": rng.uniform(0.45, 0.8) * row["r_half_arcsec"],
        "bar_angle_deg": angle,
        "arm_phase_deg": angle,  # arms start at the ends of the bar
        "arm_count": 2.0,
    }


_DRAW_KIND = {
    "early_type": _draw_early,
    "cigar": _draw_cigar,
    "edge_on": _draw_edge_on,
    "spiral": _draw_spiral,
    "barred_spiral": _draw_barred,
}


def _draw_neighbour(row: Truth, rng: np.random.Generator) -> dict[str, Any]:
    """A star or galaxy that overlaps some galaxies, and takes in a careless eye."""
    separation, angle = rng.uniform(0.8, 3.0) * row["r_half_arcsec"], rng.uniform(0, 2 * np.pi)
    is_star = bool(rng.random() < 0.5)
    drawn = {
        "neighbour_mag": row["mag_r"] + rng.uniform(0.8, 4.0),
        "neighbour_x_arcsec": separation * np.cos(angle),
        "neighbour_y_arcsec": separation * np.sin(angle),
        "neighbour_size_arcsec": 0.0 if is_star else rng.uniform(0.8, 2.0),
        "neighbour_is_star": is_star,
    }
    return drawn if rng.random() < 0.12 else {"neighbour_is_star": False}
