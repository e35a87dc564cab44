"""The mock survey: galaxies with known truth, as labelled cutouts, volunteers' votes and survey tiles.

Everything is a pure function of the seed and a galaxy's index, so that a galaxy is the same
whichever process or chunk of work renders it. `mock_truth` draws what galaxies are, `mock_light`
how they look, `mock_votes` what volunteers say of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from astropy.io import fits
from astropy.wcs import WCS

from galray.core.schema import ANSWERS
from galray.data import mock_light as light
from galray.data.images import BANDS, encode_jpeg, lupton_rgb
from galray.data.mock_light import Grid, Truth
from galray.data.mock_truth import (
    TRUTH_SCHEMA,
    MockConfig,
    asset_ids,
    draw_seeing,
    draw_tile_truth,
    draw_truth,
)
from galray.data.mock_votes import Votes, cast_votes, class_code
from galray.data.tiles import sample_squares

__all__ = [
    "CATALOGUE_SCHEMA",
    "TRUTH_SCHEMA",
    "MockConfig",
    "MockTile",
    "cutout_jpeg",
    "draw_truth",
    "filename_mapping",
    "gz2_table",
    "render_gri",
    "render_tile",
    "volunteers_votes",
]

# Streams of random numbers, so that one does not disturb another; 0 draws the truth.
_PIXELS, _FIELD, _PLACES = 1, 2, 3

_MARGIN_PX = 10  # around a cutout, for the spline and the wrap of the seeing
_STAMP_RADII = 6  # half-light radii of a galaxy that are painted on a tile
_FIELD_PER_ARCMIN2 = 6.0
_FIELD_MAGS = (16.0, 22.5)
_FIELD_STAR_FRACTION = 0.45

CATALOGUE_SCHEMA = pa.schema(
    [
        pa.field("galaxy_id", pa.int64(), nullable=False),
        pa.field("ra", pa.float64(), nullable=False),
        pa.field("dec", pa.float64(), nullable=False),
        pa.field("tile", pa.string(), nullable=False),
        pa.field("mag_r", pa.float32()),
        pa.field("radius_arcsec", pa.float32()),
    ]
)


def render_gri(config: MockConfig, truth: Truth) -> np.ndarray:
    """Render one labelled cutout, as a survey would cut it from a noisy tile.

    Parameters
    ----------
    config : MockConfig
    truth : mapping
        One row of `draw_truth`, as ``table.to_pylist()`` gives it.

    Returns
    -------
    ndarray of float32, shape (3, size_px, size_px)
        Nanomaggies per pixel.
    """
    rng = np.random.default_rng((config.seed, _PIXELS, truth["galaxy_id"]))
    side = config.size_px + 2 * _MARGIN_PX
    # Sources fall anywhere on a detector's pixels; the cutout is then shifted to the source.
    centre = (side - 1) / 2 + rng.uniform(-0.5, 0.5, 2)
    gri = light.galaxy_light(truth, Grid(side, config.pixel_scale_arcsec, (centre[0], centre[1])))
    _add_neighbour(gri, truth, centre, config)
    _add_field(
        gri,
        config,
        truth["psf_fwhm_arcsec"],
        np.random.default_rng((config.seed, _FIELD, truth["galaxy_id"])),
    )
    noisy = light.add_noise(gri, config.pixel_scale_arcsec, rng)
    return sample_squares(noisy, centre[:1], centre[1:], config.size_px)[0]


def cutout_jpeg(config: MockConfig, truth: Truth) -> bytes:
    """Render one labelled cutout as the JPEG that volunteers saw."""
    return encode_jpeg(lupton_rgb(render_gri(config, truth), config.rendering))


def volunteers_votes(config: MockConfig, truth: pa.Table) -> Votes:
    """Let volunteers classify the galaxies of a truth table."""
    return cast_votes(truth, config.n_volunteers, config.seed)


def gz2_table(truth: pa.Table, votes: Votes) -> pa.Table:
    """Return the votes as the table of Hart et al. (2016) has them, under its column names."""
    columns: dict[str, Any] = {
        "dr7objid": truth["galaxy_id"],
        "ra": truth["ra"],
        "dec": truth["dec"],
        "sample": pa.array(["original"] * len(truth), pa.string()),
        "gz2_class": pa.array([class_code(row) for row in votes.debiased], pa.string()),
        "total_classifications": votes.classifications,
        "total_votes": votes.counts.sum(axis=1, dtype=np.int32),
    }
    statistics = {
        "count": votes.counts,
        "weight": votes.weights,
        "fraction": votes.fractions,
        "weighted_fraction": votes.weighted_fractions,
        "debiased": votes.debiased,
        "flag": votes.clean,
    }
    for k, answer in enumerate(ANSWERS):
        columns |= {f"{answer.column}_{name}": values[:, k] for name, values in statistics.items()}
    return pa.table(columns)


def filename_mapping(truth: pa.Table) -> pa.Table:
    """Return the official mapping: objid, sample, and the asset_id that names each image file."""
    sample = pa.array(["original"] * len(truth), pa.string())
    return pa.table({"objid": truth["galaxy_id"], "sample": sample, "asset_id": asset_ids(truth)})


@dataclass(frozen=True)
class MockTile:
    """A survey tile with what is known of it.

    Attributes
    ----------
    name : str
    hdus : HDUList
        Image extensions G, R, I: float32 nanomaggies, TAN WCS.
    catalogue : Table of CATALOGUE_SCHEMA
        What the survey publishes.
    truth : Table of TRUTH_SCHEMA
        What only the mock knows; same rows.
    """

    name: str
    hdus: fits.HDUList
    catalogue: pa.Table
    truth: pa.Table


def render_tile(config: MockConfig, tile_index: int) -> MockTile:
    """Render one survey tile whose cutouts look just like labelled ones.

    Parameters
    ----------
    config : MockConfig
        Its `dust_lane_fraction_early` holds for the tile's galaxies.
    tile_index : int
        Tiles lie side by side in right ascension.

    Returns
    -------
    MockTile
    """
    rng = np.random.default_rng((config.seed, _PLACES, tile_index))
    x_px, y_px = _places(config, rng)
    wcs, name = _tile_wcs(config, tile_index), f"mock-{config.seed:04d}-{tile_index:04d}"
    fwhm = draw_seeing(rng)
    truth = draw_tile_truth(config, tile_index, len(x_px), fwhm)
    truth = _moved(truth, *wcs.all_pix2world(x_px, y_px, 0))
    gri = _paint_tile(config, truth, x_px, y_px, fwhm, rng)
    return MockTile(name, _tile_hdus(gri, wcs), _catalogue(truth, name), truth)


def _moved(truth: pa.Table, ra_deg: np.ndarray, dec_deg: np.ndarray) -> pa.Table:
    for column, values in (("ra", ra_deg), ("dec", dec_deg)):
        truth = truth.set_column(truth.schema.get_field_index(column), column, pa.array(values))
    return truth


def _catalogue(truth: pa.Table, tile: str) -> pa.Table:
    """Return what a survey would publish of a tile's galaxies."""
    columns = {
        "galaxy_id": truth["galaxy_id"],
        "ra": truth["ra"],
        "dec": truth["dec"],
        "tile": pa.array([tile] * len(truth), pa.string()),
        "mag_r": truth["mag_r"].cast(pa.float32()),
        "radius_arcsec": truth["r_half_arcsec"].cast(pa.float32()),
    }
    return pa.table(columns, schema=CATALOGUE_SCHEMA)


def _add_neighbour(gri: np.ndarray, truth: Truth, centre_px: np.ndarray, config: MockConfig) -> None:
    if truth["neighbour_mag"] == 0:
        return
    rng = np.random.default_rng(truth["galaxy_id"])
    x_px = centre_px[0] + truth["neighbour_x_arcsec"] / config.pixel_scale_arcsec
    y_px = centre_px[1] + truth["neighbour_y_arcsec"] / config.pixel_scale_arcsec
    _add_source(
        gri,
        config,
        rng,
        (x_px, y_px),
        truth["neighbour_mag"],
        truth["psf_fwhm_arcsec"],
        truth["neighbour_size_arcsec"],
    )


def _add_source(
    gri: np.ndarray,
    config: MockConfig,
    rng: np.random.Generator,
    at_px: tuple[float, float],
    mag_r: float,
    psf_fwhm_arcsec: float,
    size_arcsec: float,
) -> None:
    """Add a star (size 0) or a small galaxy, with a colour of its kind."""
    fwhm_px = np.hypot(psf_fwhm_arcsec, size_arcsec) / config.pixel_scale_arcsec
    g_r = rng.uniform(0.2, 1.45) if size_arcsec == 0 else rng.uniform(0.3, 1.4)
    # The reddest stars are M dwarfs: g - r stalls near 1.4 while r - i still climbs.
    r_i = 0.35 * g_r + (rng.uniform(0, 3.2) * max(g_r - 1.2, 0) if size_arcsec == 0 else 0.0)
    q = 1.0 if size_arcsec == 0 else rng.uniform(0.5, 1.0)
    fluxes = light.band_fluxes(light.flux_of(mag_r), g_r, r_i)
    light.add_blob(gri, *at_px, fluxes, fwhm_px, q, rng.uniform(0, 180))


def _add_field(gri: np.ndarray, config: MockConfig, psf_fwhm_arcsec: float, rng: np.random.Generator) -> None:
    """Scatter faint stars and galaxies over `gri`, shape (3, H, W), in place."""
    height, width = gri.shape[1:]
    area_arcmin2 = height * width * (config.pixel_scale_arcsec / 60) ** 2
    for _ in range(rng.poisson(_FIELD_PER_ARCMIN2 * area_arcmin2)):
        at_px = (rng.uniform(0, width), rng.uniform(0, height))
        # Counts double with each magnitude.
        mag = _FIELD_MAGS[1] + np.log2(rng.uniform(2.0 ** (_FIELD_MAGS[0] - _FIELD_MAGS[1]), 1))
        size = 0.0 if rng.random() < _FIELD_STAR_FRACTION else rng.uniform(0.3, 1.6)
        _add_source(gri, config, rng, at_px, mag, psf_fwhm_arcsec, size)


def _places(config: MockConfig, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return source positions on a tile: a grid, shaken so that neighbours keep apart."""
    per_side = config.tile_size_px // config.tile_spacing_px
    spacing = config.tile_size_px / per_side
    y, x = np.mgrid[:per_side, :per_side].reshape(2, -1) + 0.5
    shake = rng.uniform(-0.2, 0.2, (2, len(x)))
    return (x + shake[0]) * spacing - 0.5, (y + shake[1]) * spacing - 0.5


def _paint_tile(
    config: MockConfig,
    truth: pa.Table,
    x_px: np.ndarray,
    y_px: np.ndarray,
    fwhm: float,
    rng: np.random.Generator,
) -> np.ndarray:
    gri = np.zeros((len(BANDS), config.tile_size_px, config.tile_size_px), np.float32)
    for row, x, y in _rows(truth, x_px, y_px):
        _paint_galaxy(gri, config, row, x, y)
        _add_neighbour(gri, row, np.array([x, y]), config)
    _add_field(gri, config, fwhm, rng)
    return light.add_noise(gri, config.pixel_scale_arcsec, rng)


def _rows(truth: pa.Table, x_px: np.ndarray, y_px: np.ndarray) -> Iterator[tuple[Truth, float, float]]:
    return zip(truth.to_pylist(), x_px.tolist(), y_px.tolist(), strict=True)


def _paint_galaxy(gri: np.ndarray, config: MockConfig, row: Truth, x: float, y: float) -> None:
    side = _stamp_px(config, row)
    left, bottom = round(x) - side // 2, round(y) - side // 2
    stamp = light.galaxy_light(row, Grid(side, config.pixel_scale_arcsec, (x - left, y - bottom)))
    height, width = gri.shape[1:]
    xs = slice(max(left, 0), min(left + side, width))
    ys = slice(max(bottom, 0), min(bottom + side, height))
    gri[:, ys, xs] += stamp[:, ys.start - bottom : ys.stop - bottom, xs.start - left : xs.stop - left]


def _stamp_px(config: MockConfig, row: Truth) -> int:
    """Side of a stamp whose rim is lost in the noise; in steps, so that seeing is seldom transformed anew."""
    reach = _STAMP_RADII * row["r_half_arcsec"] / config.pixel_scale_arcsec
    return 16 * int(np.ceil(max(2 * reach, 64) / 16)) + 2 * _MARGIN_PX


def _tile_wcs(config: MockConfig, tile_index: int) -> WCS:
    wcs = WCS(naxis=2)
    scale_deg = config.pixel_scale_arcsec / 3600
    side_deg = config.tile_size_px * scale_deg
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.cdelt = [-scale_deg, scale_deg]
    wcs.wcs.crpix = [(config.tile_size_px + 1) / 2] * 2
    wcs.wcs.crval = [
        (150 + 1.05 * side_deg * (tile_index % 500)) % 360,
        5 + 1.05 * side_deg * (tile_index // 500),
    ]
    wcs.wcs.radesys = "ICRS"
    return wcs


def _tile_hdus(gri: np.ndarray, wcs: WCS) -> fits.HDUList:
    hdus = fits.HDUList([fits.PrimaryHDU()])
    for band, plane in zip(BANDS, gri, strict=True):
        header = wcs.to_header()
        header["BUNIT"] = "nanomaggy"
        hdus.append(fits.ImageHDU(plane, header, name=band.upper()))
    return hdus
