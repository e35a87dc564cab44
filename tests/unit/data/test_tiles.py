"""Cutouts of tiles: positions to a tenth of a pixel, flags, and hostile or broken files."""

import gzip
import os
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy import units
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.nddata import Cutout2D
from astropy.wcs import WCS
from scipy.ndimage import center_of_mass, map_coordinates

from galray.core.errors import InputError
from galray.core.storage import open_location
from galray.data.tile_files import Footprints, TileFiles
from galray.data.tile_fits import grid_of, open_bands, open_tile
from galray.data.tiles import BAD_PIXELS, EDGE, SATURATED, cut, sample_squares, spline_weights

REAL_FITS = Path(os.environ.get("GALRAY_REAL_DATA", "../shared/data")) / "fits"
needs_real_data = pytest.mark.skipif(
    not REAL_FITS.is_dir(), reason=f"no real FITS files at {REAL_FITS}: set GALRAY_REAL_DATA"
)
SIDE = 200


def tan_wcs(rotation_deg=25.0):
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crpix, wcs.wcs.crval = [90.3, 110.7], [359.995, 40.0]
    cos, sin = np.cos(np.radians(rotation_deg)), np.sin(np.radians(rotation_deg))
    wcs.wcs.cd = np.array([[-cos, sin], [sin, cos]]) * 0.396 / 3600
    return wcs


def stars(x_px, y_px, sigma_px=1.6):
    y, x = np.mgrid[:SIDE, :SIDE]
    return sum(
        np.exp(-0.5 * ((x - x0) ** 2 + (y - y0) ** 2) / sigma_px**2)
        for x0, y0 in zip(x_px, y_px, strict=True)
    )


def written(*planes, names=("G", "R", "I"), klass=fits.ImageHDU):
    header = tan_wcs().to_header()
    hdus = [klass(p.astype(np.float32), header, name=n) for p, n in zip(planes, names, strict=True)]
    buffer = BytesIO()
    fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(buffer)
    return buffer.getvalue()


def banded(plane, wcs=tan_wcs):
    """A file of one band."""
    buffer = BytesIO()
    fits.PrimaryHDU(plane.astype(np.float32), wcs().to_header() if wcs else None).writeto(buffer)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def field():
    rng = np.random.default_rng(3)
    x_px, y_px = rng.uniform(40, 160, (2, 6))
    ra, dec = tan_wcs().all_pix2world(x_px, y_px, 0)
    plane = stars(x_px, y_px)
    return x_px, y_px, ra, dec, written(plane, 2 * plane, 3 * plane)


def test_sources_fall_on_the_centre_to_a_tenth_of_a_pixel(field):
    _, _, ra, dec, data = field
    for size_px in (24, 25):
        cutouts = cut(open_tile(data, "t"), ra, dec, size_px)
        assert cutouts.gri.shape == (6, 3, size_px, size_px)
        assert cutouts.gri.dtype == np.float32
        half = size_px // 2
        middle = cutouts.gri[:, 1, half - 4 : half + 4 + size_px % 2, half - 4 : half + 4 + size_px % 2]
        isolated = [k for k in range(6) if middle[k].max() < 2.05]
        assert len(isolated) >= 4
        for k in isolated:
            expected = (middle.shape[1] - 1) / 2
            np.testing.assert_allclose(center_of_mass(middle[k]), expected, atol=0.1)


def test_whole_pixel_positions_agree_with_cutout2d(field):
    data = field[-1]
    tile = open_tile(data, "t")
    ra, dec = tile.wcs.all_pix2world([101.0, 80.0], [77.0, 120.0], 0)
    cutouts = cut(tile, ra, dec, 31)
    for k in range(2):
        position = SkyCoord(ra[k] * units.deg, dec[k] * units.deg)
        expected = Cutout2D(tile.data[0], position, 31, wcs=tile.wcs).data
        np.testing.assert_allclose(cutouts.gri[k, 0], expected, atol=1e-4)


def test_interpolation_follows_the_light_between_pixels(field):
    x_px, y_px, ra, dec, data = field
    gri = cut(open_tile(data, "t"), ra[:1], dec[:1], 16).gri[0]
    y, x = np.mgrid[:16, :16] - 7.5
    exact = sum(
        np.exp(-0.5 * ((x + x_px[0] - x0) ** 2 + (y + y_px[0] - y0) ** 2) / 1.6**2)
        for x0, y0 in zip(x_px, y_px, strict=True)
    )
    np.testing.assert_allclose(gri[0], exact, atol=0.01)
    np.testing.assert_allclose(gri[2], 3 * gri[0], rtol=1e-4, atol=1e-4)


def test_bands_are_found_by_name_and_compression_is_seen_through():
    plane = stars([100.0], [100.0])
    shuffled = written(3 * plane, plane, 2 * plane, names=("I", "G", "R"))
    np.testing.assert_allclose(open_tile(shuffled, "t").data[:, 100, 100], [1, 2, 3])
    np.testing.assert_allclose(open_tile(BytesIO(gzip.compress(shuffled)), "t").data[:, 100, 100], [1, 2, 3])
    packed = written(plane, 2 * plane, 3 * plane, klass=fits.CompImageHDU)
    np.testing.assert_allclose(open_tile(packed, "t").data[:, 100, 100], [1, 2, 3], atol=0.02)


def test_edges_bad_pixels_and_sources_off_the_tile_are_told():
    plane = np.full((SIDE, SIDE), 0.5, np.float32)
    holed = plane.copy()
    holed[50, 50] = np.nan
    blank = plane.copy()
    blank[120:160, 120:160] = 0
    tile = open_tile(written(plane, holed, blank), "t")
    x_px, y_px = np.array([100, 50, 140, 5, 100, 100]), np.array([60, 50, 140, 100, -9, 300])
    ra, dec = tile.wcs.all_pix2world(x_px, y_px, 0)
    cutouts = cut(tile, ra, dec, 20)
    assert cutouts.inside.tolist() == [True, True, True, True, True, False]
    assert cutouts.flags.tolist() == [0, BAD_PIXELS, BAD_PIXELS, EDGE, EDGE, 0]
    assert np.isfinite(cutouts.gri).all()
    assert (cutouts.gri[3, 0, :, :4] == 0).all()
    assert (cutouts.gri[3, 0, :, 6:] > 0.4).all()
    assert (cutouts.gri[5] == 0).all()


def test_interpolation_is_scipys_cubic_spline():
    """Whole pixels are themselves, flat sky stays flat, and all else is as scipy has it."""
    rng = np.random.default_rng(0)
    flux = rng.normal(size=(3, 90, 80)).astype(np.float32)
    x_px, y_px = rng.uniform(25, 55, (2, 7))
    x_px[0], y_px[0] = 40.5, 40.5  # whole pixels of an even square
    squares = sample_squares(flux, x_px, y_px, 20)
    for k in range(7):
        y, x = np.mgrid[:20, :20] - 9.5
        at = [y + y_px[k], x + x_px[k]]
        expected = [map_coordinates(plane.astype(float), at, order=3, mode="mirror") for plane in flux]
        np.testing.assert_allclose(squares[k], expected, atol=2e-4)
    np.testing.assert_allclose(squares[0], flux[:, 31:51, 31:51], atol=1e-6)
    np.testing.assert_allclose(spline_weights(rng.uniform(0, 1, 9)).sum(axis=1), 1, atol=1e-6)


def test_saturated_pixels_are_told():
    """From the header of their band on, or from what is given where it has none."""
    planes = np.full((3, SIDE, SIDE), 0.5, np.float32)
    planes[1, 50, 50], planes[2, 150, 150] = 90.0, 70.0
    headers = [tan_wcs().to_header() for _ in planes]
    headers[1]["SATURATE"], headers[0]["SATURATE"] = 80.0, "unknown"
    hdus = [fits.ImageHDU(p, h, name=n) for p, h, n in zip(planes, headers, "GRI", strict=True)]
    buffer = BytesIO()
    fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(buffer)
    for given, expected in ((np.inf, [SATURATED, 0, 0]), (60.0, [SATURATED, SATURATED, 0])):
        tile = open_tile(buffer.getvalue(), "t", saturation=given)
        ra, dec = tile.wcs.all_pix2world([50.0, 150.0, 100.0], [50.0, 150.0, 100.0], 0)
        assert cut(tile, ra, dec, 20).flags.tolist() == expected
    one = banded(planes[1])
    assert open_bands([one, one, one], "t", saturation=80.0).saturation == (80.0,) * 3


def test_positions_that_are_not_on_this_sky_are_outside():
    tile = open_tile(written(*np.ones((3, SIDE, SIDE))), "t")
    ra, dec = tile.wcs.all_pix2world([90.0], [100.0], 0)
    opposite = (ra[0] + 180) % 360, -dec[0]
    cutouts = cut(tile, np.array([np.nan, opposite[0]]), np.array([0.0, opposite[1]]), 16)
    assert not cutouts.inside.any()


def test_hostile_and_broken_files_are_refused_before_pixels_are_read():
    good = written(*np.ones((3, SIDE, SIDE)))
    bomb = fits.Header(
        [("SIMPLE", True), ("BITPIX", -32), ("NAXIS", 2), ("NAXIS1", 900_000), ("NAXIS2", 900_000)]
    )
    cases = {
        "safe to read|truncated": bomb.tostring().encode(),
        "truncated|too early": good[: len(good) // 2],
        "cannot be read": b"<html>not found</html>" * 200,
        "stack the bands": written(np.ones((9, 9)), np.ones((9, 9)), names=("G", "R")),
    }
    for message, data in cases.items():
        with pytest.raises(InputError, match=message):
            open_tile(data, "broken.fits")
    with pytest.raises(InputError, match="safe to read"):
        open_tile(good, "huge.fits", max_pixels=3 * SIDE * SIDE - 1)
    with pytest.raises(InputError, match="no celestial WCS to lay it onto"):
        open_bands(
            [banded(np.ones((9, 9))), banded(np.ones((9, 8)), None), banded(np.ones((9, 9)))], "uneven"
        )


def test_a_tile_without_a_sky_is_refused():
    buffer = BytesIO()
    fits.PrimaryHDU(np.ones((3, 9, 9), np.float32)).writeto(buffer)
    with pytest.raises(InputError, match="no celestial WCS"):
        open_tile(buffer.getvalue(), "nowhere.fits")


def shifted_wcs():
    """Another grid over the same sky: turned, scaled, and centred elsewhere."""
    wcs = tan_wcs(rotation_deg=-14.0)
    wcs.wcs.crpix = [105.0, 93.5]
    wcs.wcs.cd *= 0.9
    return wcs


def test_bands_on_other_grids_fall_on_the_first_to_a_tenth_of_a_pixel(field):
    x_px, y_px, ra, dec, _ = field
    there = shifted_wcs().all_world2pix(ra, dec, 0)
    other = np.vstack([stars(*there, sigma_px=1.6 / 0.9), np.full((40, SIDE), 0.0)])
    tile = open_bands([banded(stars(x_px, y_px)), banded(other, shifted_wcs), banded(stars(x_px, y_px))], "t")
    covered = np.isfinite(tile.data[1])
    assert 0.7 < covered.mean() < 1
    np.testing.assert_allclose(tile.data[1][covered], tile.data[0][covered], atol=0.01)
    cutouts = cut(tile, ra, dec, 9)
    for k in np.flatnonzero(cutouts.flags == 0):
        apart = np.subtract(center_of_mass(cutouts.gri[k, 1]), center_of_mass(cutouts.gri[k, 0]))
        assert np.abs(apart).max() < 0.1
    assert (cutouts.flags == 0).sum() >= 4


def test_a_bad_pixel_of_a_resampled_band_stays_bad():
    holed = np.ones((SIDE, SIDE))
    holed[100, 100] = np.nan
    tile = open_bands(
        [banded(np.ones((SIDE, SIDE))), banded(holed, shifted_wcs), banded(np.ones((SIDE, SIDE)))], "t"
    )
    ra, dec = shifted_wcs().all_pix2world([100.0], [100.0], 0)
    x, y = (int(v[0]) for v in np.rint(tile.wcs.all_world2pix(ra, dec, 0)))
    assert np.isnan(tile.data[1, y, x])
    assert np.isfinite(tile.data[1, y - 4 : y - 2, x - 4 : x - 2]).all()


def test_bands_of_a_file_that_calls_them_otherwise():
    plane = stars([100.0], [100.0])
    shuffled = written(3 * plane, plane, 2 * plane, names=("Z", "G", "R"))
    tile = open_tile(shuffled, "t", bands=("g", "r", "z"))
    np.testing.assert_allclose(tile.data[:, 100, 100], [1, 2, 3])


def test_the_grid_is_read_from_the_header_alone():
    data = written(*np.ones((3, SIDE, SIDE + 10)))
    for source in (data, gzip.compress(data)):
        wcs, shape = grid_of(source, "t")
        assert shape == (SIDE, SIDE + 10)
        np.testing.assert_allclose(wcs.wcs.crval, tan_wcs().wcs.crval)
    with pytest.raises(InputError, match="no celestial WCS"):
        grid_of(banded(np.ones((9, 9)), None), "t")


@needs_real_data
def test_real_bands_of_ngc_6976_in_three_files():
    """Their headers all say g: the files' names decide."""
    files = TileFiles(
        open_location(str(REAL_FITS / "sdss_ngc6976_reprojected_gri")), "{tile}_{band}.fits.bz2"
    )
    assert list(files.names()) == ["reprojected_sdss"]
    tile, footprint = files.open("reprojected_sdss"), files.footprint("reprojected_sdss")
    assert tile.data.shape == (3, *footprint.shape) == (3, 496, 682)
    for plane, band in zip(tile.data, "gri", strict=True):
        path = REAL_FITS / f"sdss_ngc6976_reprojected_gri/reprojected_sdss_{band}.fits.bz2"
        np.testing.assert_array_equal(plane, np.asarray(fits.getdata(path), np.float32))
    ra, dec = tile.wcs.all_pix2world([340.3, 201.8], [250.6, 99.1], 0)
    cutouts = cut(tile, ra, dec, 41)
    assert cutouts.inside.all()
    for k in range(2):
        _assert_as_cutout2d(tile, cutouts.gri[k], SkyCoord(ra[k], dec[k], unit="deg"))


def _assert_as_cutout2d(tile, gri, position):
    """Compare with astropy's cutout, interpolated to the same fraction of a pixel."""
    side = gri.shape[-1]
    for plane, ours in zip(tile.data, gri, strict=True):
        reference: Any = Cutout2D(plane, position, side + 12, wcs=tile.wcs, mode="partial", fill_value=np.nan)
        x_px, y_px = reference.wcs.world_to_pixel(position)
        at = np.arange(side) - (side - 1) / 2
        grid = np.meshgrid(y_px + at, x_px + at, indexing="ij")
        filled = np.nan_to_num(reference.data)
        expected = map_coordinates(filled, grid, order=3)
        known = map_coordinates(np.isnan(reference.data).astype(float), grid, order=1) == 0
        np.testing.assert_allclose(ours[known], expected[known], atol=0.02 * np.nanmax(np.abs(filled)))


@needs_real_data
def test_real_decals_cutouts_open_flag_or_fail():
    folder = REAL_FITS / "gz_decals"
    good, bad = (open_tile((folder / f"example_{n}.fits").read_bytes(), n) for n in ("a", "bad_pix"))
    for tile, flag in ((good, 0), (bad, BAD_PIXELS)):
        ra, dec = tile.wcs.all_pix2world([211.5], [211.5], 0)
        assert cut(tile, ra, dec, 64).flags.tolist() == [flag]
    with pytest.raises(InputError, match="truncated"):
        open_tile((folder / "example_incomplete.fits").read_bytes(), "example_incomplete.fits")


@needs_real_data
def test_every_real_sdss_source_is_cut_where_astropy_cuts_it():
    """All 981 sources of the frame: inside it, and within a tenth of a pixel of astropy's cutout."""
    folder = REAL_FITS / "sdss_003900-6-0269_photoObj_uframe"
    files = TileFiles(open_location(str(folder)), "frame-{band}-{tile}.fits.bz2", ("u", "u", "u"))
    tile = files.open("003900-6-0269")
    rows: Any = fits.getdata(folder / "photoObj-003900-6-0269.fits", 1)
    owners = Footprints([files.footprint(name) for name in files.names()]).owners(rows["ra"], rows["dec"])
    assert owners.tolist() == ["003900-6-0269"] * 981
    cutouts = cut(tile, rows["ra"], rows["dec"], 21)
    assert cutouts.inside.all()
    x_px, y_px = tile.wcs.all_world2pix(rows["ra"], rows["dec"], 0)
    height, width = tile.data.shape[1:]
    near_edge = (np.minimum(x_px, width - 1 - x_px) < 9) | (np.minimum(y_px, height - 1 - y_px) < 9)
    assert ((cutouts.flags & EDGE) > 0)[near_edge].all()
    bright = np.flatnonzero((rows["psfflux"][:, 0] > 60) & (rows["nchild"] == 0) & (cutouts.flags == 0))
    assert len(bright) >= 5
    for k in bright:
        _assert_as_cutout2d(tile, cutouts.gri[k], SkyCoord(rows["ra"][k], rows["dec"][k], unit="deg"))
    is_star = bright[rows["objc_type"][bright] == 6]
    offsets = [center_of_mass(np.clip(cutouts.gri[k, 0, 5:16, 5:16], 0.3, None) - 0.3) for k in is_star]
    assert np.abs(np.median(offsets, axis=0) - 5).max() < 0.3  # the star catalogue is in r, the frame in u
