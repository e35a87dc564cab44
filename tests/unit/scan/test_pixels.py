"""Sources become images, or rejects with a reason; nothing is lost on the way."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from astropy.wcs import WCS

from galray.core.errors import StorageUnreachable
from galray.core.schema import CUTOUT_FLAGS, REJECT_REASONS
from galray.core.storage import Location, open_location
from galray.data.images import Rendering, encode_png, lupton_rgb
from galray.data.mock import MockConfig, MockTile, render_tile
from galray.data.tile_files import Footprints, TileFiles
from galray.data.tile_fits import open_tile
from galray.data.tiles import Tile, cut
from galray.scan.columns import Columns, ReadColumns
from galray.scan.pixels import AssignTiles, CutSources, DecodeGalaxies, Side, images_of

SIZE_PX = 32
GOOD = "good"
REAL_FITS = Path(os.environ.get("GALRAY_REAL_DATA", "../shared/data")) / "fits/gz_decals"


@pytest.fixture(scope="module")
def tile() -> MockTile:
    return render_tile(MockConfig(tile_size_px=180), 0)


@pytest.fixture(scope="module")
def tile_bytes(tile: MockTile) -> bytes:
    buffer = io.BytesIO()
    tile.hdus.writeto(buffer)
    return buffer.getvalue()


@pytest.fixture
def tiles(tmp_path: Path, tile_bytes: bytes) -> Location:
    (tmp_path / f"{GOOD}.fits").write_bytes(tile_bytes)
    (tmp_path / "truncated.fits").write_bytes(tile_bytes[: len(tile_bytes) // 2])
    (tmp_path / "noise.fits").write_bytes(b"no FITS at all")
    (tmp_path / "folder.fits").mkdir()
    return open_location(str(tmp_path))


def catalogue(tile: MockTile, /, **columns: object) -> pa.Table:
    plain = tile.catalogue.select(["galaxy_id", "ra", "dec"])
    table = plain.append_column("tile", pa.array([GOOD] * len(plain)))
    for name, values in columns.items():
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(values))
    return ReadColumns(Columns().found_in(table.column_names, "the catalogue"), None)(table)


def cutter(tiles: Location, cutout_px: int = SIZE_PX) -> CutSources:
    return CutSources(TileFiles(tiles), Side(cutout_px), SIZE_PX, Rendering())


def test_cut_sources_are_the_cutouts_made_by_hand(tiles, tile, tile_bytes):
    block = catalogue(tile)
    images = images_of(cutter(tiles)(block))
    by_hand = cut(open_tile(tile_bytes, GOOD), block["ra"].to_numpy(), block["dec"].to_numpy(), SIZE_PX)
    expected = np.stack([lupton_rgb(gri, Rendering()) for gri in by_hand.gri])
    np.testing.assert_array_equal(images, expected)
    assert images.std() > 5  # not a blank sky


def test_larger_cutouts_are_resampled(tiles, tile):
    images = images_of(cutter(tiles, cutout_px=2 * SIZE_PX)(catalogue(tile)))
    assert images.shape == (len(tile.catalogue), SIZE_PX, SIZE_PX, 3)
    assert not np.array_equal(images, images_of(cutter(tiles)(catalogue(tile))))


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("tile", "absent", "missing_image"),
        ("tile", None, "missing_image"),
        ("tile", "truncated", "unreadable_file"),
        ("tile", "noise", "unreadable_file"),
        ("tile", "folder", "unreadable_file"),
        ("tile", "../../etc/passwd", "unsafe_path"),
        ("ra", None, "bad_position"),
        ("ra", 361.0, "bad_position"),
        ("dec", -999.0, "bad_position"),
        ("dec", 90.5, "bad_position"),
        ("dec", 40.0, "outside_tile"),
        ("galaxy_id", None, "bad_id"),
    ],
)
def test_what_cannot_be_cut_is_rejected_alone(tiles, tile, column, value, reason):
    values = catalogue(tile)[column].to_pylist()
    values[3] = value
    block = cutter(tiles)(catalogue(tile, **{column: values}))
    reasons = block["reason"].to_pylist()
    assert reasons[3] == reason
    assert reason in REJECT_REASONS
    assert block["detail"][3].as_py()
    assert [r for i, r in enumerate(reasons) if i != 3] == [None] * (len(reasons) - 1)


def test_a_rounded_id_is_rejected_and_quoted(tiles, tile):
    ids = [float(i) for i in range(len(tile.catalogue))]
    ids[2] = 587722981736906879.0
    block = cutter(tiles)(catalogue(tile, galaxy_id=ids))
    assert block["reason"].to_pylist()[2] == "bad_id"
    assert block["reason"].null_count == len(ids) - 1
    assert block["id_text"][2].as_py().startswith("5.877")


def test_sources_at_the_edge_are_flagged(tiles, tile):
    ra, dec = tile.hdus[1].header["CRVAL1"], tile.hdus[1].header["CRVAL2"]
    half_deg = 90 * 0.396 / 3600
    positions = {"ra": [ra, ra], "dec": [dec, dec + half_deg]}
    block = catalogue(tile).slice(0, 2)
    for name, values in positions.items():
        block = block.set_column(block.schema.get_field_index(name), name, pa.array(values))
    assert cutter(tiles)(block)["flags"].to_pylist() == [0, CUTOUT_FLAGS["edge"]]


def test_cutouts_scaled_to_the_radius(tiles, tile):
    """A source's image shows so many of its radii, resampled; without a radius it is set aside."""
    count = len(tile.catalogue)
    block = catalogue(tile)
    radii = pa.array([6.336] * (count - 2) + [None, 0.0], pa.float32())
    block = block.set_column(block.schema.get_field_index("radius_arcsec"), "radius_arcsec", radii)
    scaled = CutSources(TileFiles(tiles), Side(0, radii=4.0), SIZE_PX, Rendering())(block)
    by_hand = cutter(tiles, cutout_px=64)(block)  # 4 x 6.336 arcsec of 0.396 each
    np.testing.assert_array_equal(images_of(scaled)[: count - 2], images_of(by_hand)[: count - 2])
    assert scaled["reason"].to_pylist()[-2:] == ["missing_radius"] * 2


def test_cutouts_of_a_stated_piece_of_sky(tiles, tile):
    """Of tiles whose pixels are larger, fewer make it up."""
    by_sky = CutSources(TileFiles(tiles), Side(0, arcsec=25.344), SIZE_PX, Rendering())(catalogue(tile))
    by_hand = cutter(tiles, cutout_px=64)(catalogue(tile))  # of 0.396 arcsec each
    np.testing.assert_array_equal(images_of(by_sky), images_of(by_hand))
    coarse = WCS(naxis=2)
    coarse.wcs.ctype, coarse.wcs.cdelt = ["RA---TAN", "DEC--TAN"], [-0.792 / 3600, 0.792 / 3600]
    large = Tile(np.zeros((3, 4, 4), np.float32), coarse, "coarse")
    assert Side(0, arcsec=25.344).on(large, np.ones(3)).tolist() == [32] * 3


def test_tiles_are_found_by_their_sky(tiles, tile):
    files = TileFiles(tiles)
    assign = AssignTiles(Footprints([files.footprint(GOOD)]))
    dec = tile.catalogue["dec"].to_pylist()
    dec[0], dec[1], dec[2] = 40.0, None, 95.0
    nameless = pa.array([None] * len(dec), pa.string())
    block = assign(catalogue(tile, tile=nameless, dec=dec))
    assert block["tile"].to_pylist() == [None, None, None, *[GOOD] * (len(dec) - 3)]
    assert block["reason"].to_pylist() == ["outside_tile", *[None] * (len(dec) - 1)]
    cut_out = cutter(tiles)(block)
    assert cut_out["reason"].to_pylist()[:3] == ["outside_tile", "bad_position", "bad_position"]
    assert cut_out["reason"].null_count == len(dec) - 3


def test_a_store_out_of_reach_is_no_reason_to_reject(tile, monkeypatch):
    def unreachable(self: Location) -> None:
        raise StorageUnreachable(self.uri)

    monkeypatch.setattr(Location, "open_whole", unreachable)
    with pytest.raises(StorageUnreachable):
        cutter(open_location("/a/bucket/that/sleeps"))(catalogue(tile))


def test_each_tile_is_opened_once(tiles, tile, monkeypatch):
    opened = []
    open_whole = Location.open_whole
    monkeypatch.setattr(Location, "open_whole", lambda self: opened.append(self.name) or open_whole(self))
    (Path(tiles.path) / "other.fits").write_bytes((tiles / f"{GOOD}.fits").read_bytes())
    names = [GOOD, "other"] * len(tile.catalogue)
    block = cutter(tiles)(catalogue(tile, tile=names[: len(tile.catalogue)]))
    assert block["reason"].null_count == len(block)
    assert opened == [f"{GOOD}.fits", "other.fits"]


def test_images_survive_slices_and_joins(tiles, tile):
    whole = cutter(tiles)(catalogue(tile))
    parts = pa.concat_tables([whole.slice(0, 2), whole.slice(2)])
    np.testing.assert_array_equal(images_of(parts), images_of(whole))
    np.testing.assert_array_equal(images_of(whole.slice(3, 4)), images_of(whole)[3:7])


def test_an_empty_block_stays_one(tiles, tile):
    block = cutter(tiles)(catalogue(tile).slice(0, 0))
    assert images_of(block).shape == (0, SIZE_PX, SIZE_PX, 3)


def test_galaxies_are_decoded_and_damaged_ones_rejected():
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 255, (3, SIZE_PX, SIZE_PX, 3), dtype=np.uint8)
    png = [encode_png(image) for image in rgb]
    png[1] = png[1][:200]
    block = pa.table(
        {
            "galaxy_id": [5, 6, 7],
            "ra": pa.array([1.0, None, 3.0]),
            "dec": [1.0, 2.0, 3.0],
            "image": png,
            "provenance": [json.dumps({"image": f"{i}.png"}) for i in range(3)],
        }
    )
    decoded = DecodeGalaxies(SIZE_PX)(block)
    assert decoded["reason"].to_pylist() == [None, "truncated_image", None]
    assert decoded["tile"].to_pylist() == ["0.png", "1.png", "2.png"]
    assert decoded["ra"].to_pylist() == [1.0, None, 3.0]
    np.testing.assert_array_equal(images_of(decoded)[[0, 2]], rgb[[0, 2]])


@pytest.mark.skipif(not REAL_FITS.is_dir(), reason=f"no real FITS files at {REAL_FITS}: set GALRAY_REAL_DATA")
def test_the_real_decals_cutouts_are_tiles_and_the_damaged_ones_are_named():
    """Of five three-band cutouts one has bad pixels, and one ends too early."""
    names = ["example_a", "example_b", "example_c", "example_bad_pix", "example_incomplete"]
    files = TileFiles(open_location(str(REAL_FITS)), bands=("g", "r", "z"))
    assert sorted(files.names()) == sorted(names)
    centres = [files.footprint(name).wcs.wcs.crval for name in names]  # the headers are whole
    table = pa.table(
        {
            "galaxy_id": list(range(5)),
            "ra": [ra for ra, _ in centres],
            "dec": [dec for _, dec in centres],
            "tile": names,
        }
    )
    sources = ReadColumns(Columns().found_in(table.column_names, "cat"), None)(table)
    block = CutSources(files, Side(424), SIZE_PX, Rendering())(sources)
    assert block["reason"].to_pylist() == [None, None, None, None, "unreadable_file"]
    assert "example_incomplete.fits" in block["detail"][4].as_py()
    assert block["flags"].to_pylist()[3] & CUTOUT_FLAGS["bad_pixels"]
    assert not any(flags & CUTOUT_FLAGS["bad_pixels"] for flags in block["flags"].to_pylist()[:3])
    assert (images_of(block)[:4].std(axis=(1, 2, 3)) > 3).all()
