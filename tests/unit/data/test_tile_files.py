"""Which files form a tile, and which tile owns a source."""

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from galray.core.errors import ConfigError, ImageRejected, InputError
from galray.core.storage import open_location
from galray.data.tile_files import Footprint, Footprints, TileFiles

SIDE_PX, SCALE_DEG = 100, 0.001


def wcs_at(ra_deg, dec_deg, turn_deg=0.0):
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crpix, wcs.wcs.crval = [50.5, 50.5], [ra_deg, dec_deg]
    cos, sin = np.cos(np.radians(turn_deg)), np.sin(np.radians(turn_deg))
    wcs.wcs.cd = np.array([[-cos, sin], [sin, cos]]) * SCALE_DEG
    return wcs


def footprint(name, ra_deg, dec_deg, turn_deg=0.0):
    return Footprint(name, wcs_at(ra_deg, dec_deg, turn_deg), (SIDE_PX, SIDE_PX))


def write(path, wcs, value=1.0):
    path.parent.mkdir(exist_ok=True, parents=True)
    fits.PrimaryHDU(np.full((SIDE_PX, SIDE_PX), value, np.float32), wcs.to_header()).writeto(path)


@pytest.mark.parametrize("pattern", ["tile.fits", "{tile}-{filter}.fits", "{band}.fits"])
def test_patterns_that_name_no_tile(pattern):
    with pytest.raises(ConfigError, match="--tile-files"):
        TileFiles(open_location("/x"), pattern)


def test_three_bands_are_needed():
    with pytest.raises(ConfigError, match="--bands g r"):
        TileFiles(open_location("/x"), "{tile}.fits", ("g", "r"))


def test_files_of_bands_form_a_tile(tmp_path):
    for value, band in enumerate("grz"):
        write(tmp_path / f"033/brick-033-{band}.fits", wcs_at(10, 0), value)
        write(tmp_path / f"044/brick-044-{band}.fits", wcs_at(11, 0), value)
    write(tmp_path / "033/brick-044-g.fits", wcs_at(10, 0))
    (tmp_path / "044/brick-044-z.fits").unlink()
    tiles = TileFiles(open_location(str(tmp_path)), "{tile}/brick-{tile}-{band}.fits", ("g", "r", "z"))
    assert sorted(tiles.names()) == ["033", "044"]
    tile = tiles.open("033")
    assert tile.data[:, 5, 5].tolist() == [0.0, 1.0, 2.0]
    depth_deg = tiles.footprint("044").depth_deg(np.array([11.0]), np.array([0.0]))
    assert depth_deg == pytest.approx(0.05, rel=1e-3)
    with pytest.raises(ImageRejected, match=r"missing_image.*brick-044-z\.fits"):
        tiles.open("044")


def test_a_header_that_is_none(tmp_path):
    (tmp_path / "a.fits").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"a\.fits"):
        TileFiles(open_location(str(tmp_path))).footprint("a")


def test_one_tile_owns_a_source_the_one_whose_edge_is_farthest():
    tiles = [
        footprint("b", 10.0, 20.0),
        footprint("a", 10.06, 20.0, turn_deg=30.0),
        footprint("c", 200.0, -5.0),
    ]
    ra = np.array([9.97, 10.07, 10.03, 200.0, 50.0, 20.0, np.nan])
    dec = np.array([20.0, 20.0, 20.0, -5.0, 20.0, -20.0, 0.0])
    owners = Footprints(tiles).owners(ra, dec)
    depth = {tile.tile: tile.depth_deg(ra, dec) for tile in tiles}
    assert depth["a"][2] > 0 < depth["b"][2]
    deeper = "a" if depth["a"][2] > depth["b"][2] else "b"
    assert owners.tolist() == ["b", "a", deeper, "c", None, None, None]
    assert Footprints(tiles[::-1]).owners(ra, dec).tolist() == owners.tolist()
    assert Footprints([]).owners(ra, dec).tolist() == [None] * 7


def test_ownership_is_a_partition_of_the_covered_sky():
    """Owned where any tile covers it, by one that does; across RA 0 and near a pole."""
    rng = np.random.default_rng(0)
    for ra0, dec0 in ((359.98, 0.0), (120.0, 88.9)):
        stretch = 1 / np.cos(np.radians(dec0))
        tiles = [footprint(f"t{i}", ra0 + i * 0.07 * stretch, dec0 + 0.03 * (i % 2)) for i in range(4)]
        ra = (ra0 + rng.uniform(-0.2, 0.5, 400) * stretch) % 360
        dec = dec0 + rng.uniform(-0.1, 0.1, 400)
        owners = Footprints(tiles).owners(ra, dec)
        covers = {tile.tile: tile.depth_deg(ra, dec) > 0 for tile in tiles}
        covered = np.logical_or.reduce(list(covers.values()))
        assert 50 < covered.sum() < 400
        assert [owner is not None for owner in owners] == covered.tolist()
        assert all(covers[owner][k] for k, owner in enumerate(owners) if owner)
