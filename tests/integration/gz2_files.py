"""Galaxy Zoo 2 as it is published, small: vote tables, filename mapping and images, sound and damaged."""

from __future__ import annotations

import csv
import gzip
import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from astropy.table import Table
from PIL import Image

from galray.core.schema import ANSWERS

FIRST_ID = 587722981736906879  # an SDSS id; a float64 rounds it and its neighbours to one number
SIZE_PX = 64
FRACTIONS = [f"{answer.column}_weighted_fraction" for answer in ANSWERS]

Row = dict[str, Any]


def galaxy_rows(count: int, first: int = 0) -> list[Row]:
    """Return rows of a vote table whose fractions sum to one in each question."""
    random = np.random.default_rng(7)
    return [_row(i, random) for i in range(first, first + count)]


def _row(i: int, random: np.random.Generator) -> Row:
    fractions = random.random(len(ANSWERS)).round(3)
    return {
        "dr7objid": FIRST_ID + i,
        "ra": 150.0 + i / 100,
        "dec": 2.0,
        "gz2class": "Ei",
        "total_classifications": 40 + i % 5,
        **dict(zip(FRACTIONS, fractions.tolist(), strict=True)),
    }


def asset_id(galaxy_id: int) -> int:
    return galaxy_id - FIRST_ID + 1


def mapping_rows(rows: Sequence[Row]) -> list[Row]:
    ids = [row["dr7objid"] for row in rows]
    return [{"objid": i, "sample": "original", "asset_id": asset_id(i)} for i in ids]


def jpeg(seed: int = 0, size: tuple[int, int] = (SIZE_PX, SIZE_PX), mode: str = "RGB") -> bytes:
    """Return a JPEG of a blob on noise; `size` is (width, height)."""
    return _encoded(_picture(seed, size).convert(mode), "JPEG")


def png(mode: str) -> bytes:
    """Return a PNG in one of Pillow's modes."""
    if mode == "I;16":
        deep = Image.fromarray(np.full((SIZE_PX, SIZE_PX), 40_000, dtype=np.uint16))
        return _encoded(deep, "PNG")
    return _encoded(_picture(0, (SIZE_PX, SIZE_PX)).convert(mode), "PNG")


def _picture(seed: int, size: tuple[int, int]) -> Image.Image:
    width, height = size
    y, x = np.mgrid[:height, :width]
    blob = 200 * np.exp(-((x - width / 2) ** 2 + (y - height / 2) ** 2) / (width * height / 30))
    noise = np.random.default_rng(seed).normal(20, 8, (height, width, 3))
    return Image.fromarray(np.clip(blob[..., None] + noise, 0, 255).astype(np.uint8))


def _encoded(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def png_bomb(side: int = 60_000) -> bytes:
    """Return a small PNG that claims side x side pixels."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def jpeg_bomb(side: int = 65_000) -> bytes:
    """Return a JPEG whose frame header claims side x side pixels."""
    data = bytearray(jpeg())
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", side, side)
    return bytes(data)


# ---- writing them as people publish them ----------------------------------------------------------


def write_csv(path: Path, rows: Sequence[Row], start: str = "", line_end: str = "\n") -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator=line_end, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    data = (start + text.getvalue()).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def write_windows_csv(path: Path, rows: Sequence[Row]) -> None:
    write_csv(path, rows, start="\ufeff", line_end="\r\n")


def write_fits(path: Path, rows: Sequence[Row]) -> None:
    Table(rows=list(rows)).write(path)


def write_parquet(path: Path, rows: Sequence[Row]) -> None:
    pd.DataFrame(list(rows)).to_parquet(path)


TABLE_FORMS: dict[str, Callable[[Path, Sequence[Row]], None]] = {
    "votes.csv": write_csv,
    "windows.csv": write_windows_csv,
    "votes.csv.gz": write_csv,
    "votes.fits": write_fits,
    "votes.parquet": write_parquet,
}


def write_folder(folder: Path, images: Mapping[str, bytes]) -> None:
    folder.mkdir(parents=True)
    for name, data in images.items():
        (folder / name).write_bytes(data)


def write_zip(path: Path, images: Mapping[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in images.items():
            archive.writestr(name, data)


def images_of(rows: Sequence[Row], folder: str = "") -> dict[str, bytes]:
    """Return name -> JPEG of the galaxies in `rows`."""
    assets = [asset_id(row["dr7objid"]) for row in rows]
    return {f"{folder}{asset}.jpg": jpeg(asset) for asset in assets}


def write_survey(folder: Path, rows: Sequence[Row], table: str = "votes.csv") -> dict[str, Any]:
    """Write sound galaxies in one form of table, and return the ingest options that lead to them."""
    TABLE_FORMS[table](folder / table, rows)
    write_csv(folder / "mapping.csv", mapping_rows(rows))
    write_folder(folder / "images", images_of(rows))
    return {
        "root": str(folder / "run"),
        "votes": str(folder / table),
        "mapping": str(folder / "mapping.csv"),
        "images": str(folder / "images"),
        "expected_size_px": SIZE_PX,
    }


# ---- damaging them ----------------------------------------------------------------------------------


@dataclass
class Damaged:
    """Sound galaxies mixed with damaged input, and what ingest must say of each.

    Attributes
    ----------
    expected : dict
        What identifies a reject -- its id as text, or the image that no row names -- and the reason.
    """

    rows: list[Row]
    good: list[int]
    images: dict[str, bytes]
    mapping: list[Row]
    expected: list[tuple[str, str]] = field(default_factory=list)

    def image(self, row: Row, data: bytes | None, reason: str) -> None:
        """Give a galaxy a bad image, or none."""
        name = f"{asset_id(row['dr7objid'])}.jpg"
        if data is None:
            del self.images[name]
        else:
            self.images[name] = data
        self.expected.append((str(row["dr7objid"]), reason))

    def row(self, row: Row, changes: Row, reason: str) -> None:
        """Damage a row of the table."""
        row.update(changes)
        self.expected.append((str(row["dr7objid"]), reason))

    def stray(self, name: str, data: bytes, reason: str) -> None:
        """Add an image that no row names."""
        self.images[name] = data
        self.expected.append((name, reason))


BAD_IMAGES: tuple[tuple[str, Callable[[], bytes | None], str], ...] = (
    ("half a JPEG", lambda: jpeg()[: len(jpeg()) // 2], "truncated_image"),
    ("a JPEG without its last byte", lambda: jpeg()[:-1], "truncated_image"),
    ("the first 30 bytes of a JPEG", lambda: jpeg()[:30], "truncated_image"),
    ("half a PNG", lambda: png("RGB")[: len(png("RGB")) // 2], "truncated_image"),
    ("a web page", lambda: b"<html>404 Not Found</html>", "not_an_image"),
    ("an empty file", lambda: b"", "not_an_image"),
    ("a GIF", lambda: b"GIF89a" + bytes(100), "not_an_image"),
    ("noise", lambda: np.random.default_rng(0).bytes(5000), "not_an_image"),
    ("nothing", lambda: None, "missing_image"),
    ("nothing again", lambda: None, "missing_image"),
    ("too wide", lambda: jpeg(size=(96, 64)), "wrong_size"),
    ("too small", lambda: jpeg(size=(32, 32)), "wrong_size"),
    ("CMYK", lambda: jpeg(mode="CMYK"), "wrong_mode"),
    ("greyscale JPEG", lambda: jpeg(mode="L"), "wrong_mode"),
    ("greyscale PNG", lambda: png("L"), "wrong_mode"),
    ("16-bit PNG", lambda: png("I;16"), "wrong_mode"),
    ("palette PNG", lambda: png("P"), "wrong_mode"),
    ("RGBA PNG", lambda: png("RGBA"), "wrong_mode"),
    ("a PNG bomb", png_bomb, "decompression_bomb"),
    ("a JPEG bomb", jpeg_bomb, "decompression_bomb"),
)

BAD_ROWS: tuple[tuple[Row, str], ...] = (
    ({"dr7objid": "abc"}, "bad_id"),
    ({"dr7objid": "12x4"}, "bad_id"),
    ({"dr7objid": "99999999999999999999"}, "bad_id"),
    ({"dr7objid": "5.877229817369069e+17"}, "bad_id"),
    ({"dr7objid": "587722981736906890.0"}, "bad_id"),
    ({FRACTIONS[0]: 1.2}, "fraction_out_of_range"),
    ({FRACTIONS[5]: -0.1}, "fraction_out_of_range"),
    ({FRACTIONS[30]: "many"}, "fraction_out_of_range"),
    ({FRACTIONS[36]: "inf"}, "fraction_out_of_range"),
)


def damaged(good: int = 40) -> Damaged:
    """Return sound galaxies with every kind of damaged input among them."""
    rows = galaxy_rows(good + len(BAD_IMAGES) + len(BAD_ROWS) + 3)
    bad = iter(rows[good:])
    case = Damaged(rows, [row["dr7objid"] for row in rows[:good]], images_of(rows), mapping_rows(rows))
    for _, make, reason in BAD_IMAGES:
        case.image(next(bad), make(), reason)
    for changes, reason in BAD_ROWS:
        row = next(bad)
        if "dr7objid" in changes:  # then no row names its image any more
            name = f"{asset_id(row['dr7objid'])}.jpg"
            case.stray(name, case.images[name], "image_without_row")
        case.row(row, changes, reason)
    for row in bad:
        case.mapping.remove(next(m for m in case.mapping if m["objid"] == row["dr7objid"]))
        case.stray(f"{asset_id(row['dr7objid'])}.jpg", jpeg(), "image_without_row")
        case.row(row, {}, "unmapped_galaxy")
    for row in rows[:3]:
        case.rows.append(dict(row))
        case.expected.append((str(row["dr7objid"]), "duplicate_id"))
    for name in ("777777.jpg", "888888.png", "README.txt"):
        case.stray(name, jpeg(), "image_without_row")
    return case
