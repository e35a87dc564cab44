"""Write a mock survey to storage in the forms real ones are published in, on Ray Data.

survey/votes.csv.gz  filename_mapping.csv  images.zip    labelled galaxies, as Galaxy Zoo 2 has them
survey/tiles/*.fits  catalogue/*.parquet                 tiles to scan, and their sources
survey/truth/labelled.parquet  tiles.parquet             what only the mock knows
"""

from __future__ import annotations

import gzip
import io
import tempfile
import zipfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv
import ray

from galray.core.cluster import Progress, say
from galray.core.config import JobConfig, Preset, require
from galray.core.manifest import FileRecord, Manifest, Publication, publish, standing, write_parquet
from galray.core.storage import Location
from galray.core.tracking import track
from galray.data.mock import (
    MockConfig,
    cutout_jpeg,
    draw_truth,
    filename_mapping,
    gz2_table,
    render_tile,
    volunteers_votes,
)

_GALAXIES_PER_TASK = 128


@dataclass(frozen=True, kw_only=True)
class SurveyConfig(JobConfig):
    """How large a mock survey to write, and what it is like."""

    labelled: int = 5000
    """Labelled galaxies, with images and votes."""
    tiles: int = 12
    """Survey tiles to scan, of a few hundred sources each."""
    tile_dust_lane_fraction_early: float = 0.03
    """Share of dust lanes among the early types on the tiles."""
    mock: MockConfig = field(default_factory=lambda: MockConfig(dust_lane_fraction_early=0.05))
    output: str = "{root}/survey"

    def __post_init__(self) -> None:
        require(self.labelled >= 1, f"--labelled is {self.labelled}; give at least 1.")
        require(self.tiles >= 0, f"--tiles is {self.tiles}; give 0 or more.")

    @property
    def tile_mock(self) -> MockConfig:
        return replace(self.mock, dust_lane_fraction_early=self.tile_dust_lane_fraction_early)


def make_survey(config: SurveyConfig) -> Manifest:
    """Write a mock survey: labelled galaxies, tiles with catalogues, and the truth beside them."""
    output = config.location(config.output)
    done = standing(output, "survey", config.resume)
    if done:
        return done
    with track("mock", config) as run, publish(output, "survey", config.resolved()) as publication:
        _write_labelled(config, publication)
        _write_tiles(config, publication)
        run.metrics(publication.counts)
    say(f"mock survey: {publication.counts} -> {output.uri}")
    return Manifest.read(output)


def _write_labelled(config: SurveyConfig, publication: Publication) -> None:
    render = _RenderLabelled(config.mock)
    chunks = ray.data.range(config.labelled, override_num_blocks=-(-config.labelled // _GALAXIES_PER_TASK))
    chunks.context.enable_progress_bars = False  # in favour of our own, which knows the galaxies
    rendered = chunks.map_batches(render, batch_size=None, batch_format="pyarrow")
    progress = Progress("mock galaxies", config.labelled, "galaxies")
    tables: dict[str, list[pa.Table]] = {"truth": [], "votes": [], "mapping": []}
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder, "images.zip")
        with zipfile.ZipFile(archive, "w") as images:
            for chunk in rendered.iter_rows():
                for name in tables:
                    tables[name].append(_unpack(chunk[name]))
                for stem, image in zip(chunk["stems"], chunk["images"], strict=True):
                    images.writestr(_dated(f"images/{stem}.jpg"), image)
                progress.advance(len(chunk["stems"]))
        publication.write("images.zip", archive.read_bytes())
    progress.close()
    publication.write("votes.csv.gz", gzip.compress(_csv(tables["votes"]), mtime=0), config.labelled)
    publication.write("filename_mapping.csv", _csv(tables["mapping"]), config.labelled)
    truth = pa.concat_tables(tables["truth"])
    publication.add(write_parquet(publication.location, "truth/labelled.parquet", truth))
    publication.counts |= {"labelled": config.labelled, "labelled_dust_lane_early_types": _rare(truth)}


def _dated(name: str) -> zipfile.ZipInfo:
    return zipfile.ZipInfo(name, date_time=(2026, 1, 1, 0, 0, 0))  # the same bytes on every run


class _RenderLabelled:
    """Render a range of labelled galaxies: one row holds their images and tables."""

    def __init__(self, mock: MockConfig) -> None:
        self._mock = mock

    def __call__(self, block: pa.Table) -> pa.Table:
        ids = block["id"].to_numpy()
        truth = draw_truth(self._mock, int(ids[0]), int(ids[-1]) + 1)
        mapping = filename_mapping(truth)
        row = {
            "truth": _pack(truth),
            "votes": _pack(gz2_table(truth, volunteers_votes(self._mock, truth))),
            "mapping": _pack(mapping),
            "stems": mapping["asset_id"].to_pylist(),
            "images": [cutout_jpeg(self._mock, row) for row in truth.to_pylist()],
        }
        return pa.Table.from_pylist([row])


def _write_tiles(config: SurveyConfig, publication: Publication) -> None:
    if not config.tiles:
        return
    task = _RenderTile(config.tile_mock, publication.location)
    tiles = ray.data.range(config.tiles, override_num_blocks=config.tiles).map_batches(
        task, batch_size=None, batch_format="pyarrow"
    )
    tiles.context.enable_progress_bars = False
    progress = Progress("mock tiles", config.tiles, "tiles")
    truth: list[pa.Table] = []
    for row in tiles.iter_rows():
        truth.append(_unpack(row["truth"]))
        publication.add([FileRecord(**record) for record in row["files"]])
        progress.advance()
    progress.close()
    everything = pa.concat_tables(truth)
    publication.add(write_parquet(publication.location, "truth/tiles.parquet", everything))
    publication.counts |= {"sources": len(everything), "source_dust_lane_early_types": _rare(everything)}


class _RenderTile:
    """Render tiles and write them with their catalogues."""

    def __init__(self, mock: MockConfig, output: Location) -> None:
        self._mock = mock
        self._output = output

    def __call__(self, block: pa.Table) -> pa.Table:
        return pa.Table.from_pylist([self._tile(index) for index in block["id"].to_pylist()])

    def _tile(self, index: int) -> dict[str, Any]:
        tile = render_tile(self._mock, index)
        buffer = io.BytesIO()
        tile.hdus.writeto(buffer)
        path, data = f"tiles/{tile.name}.fits", buffer.getvalue()
        (self._output / path).write_bytes(data)
        files = [
            FileRecord.of(path, data),
            write_parquet(self._output, f"catalogue/{tile.name}.parquet", tile.catalogue),
        ]
        return {"truth": _pack(tile.truth), "files": [vars(file) for file in files]}


def _rare(truth: pa.Table) -> int:
    return pc.sum(truth["dust_lane_early_type"]).as_py()  # pyright: ignore[reportAttributeAccessIssue]


def _csv(tables: list[pa.Table]) -> bytes:
    buffer = io.BytesIO()
    csv.write_csv(pa.concat_tables(tables), buffer)
    return buffer.getvalue()


def _pack(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def _unpack(data: bytes) -> pa.Table:
    return pa.ipc.open_stream(data).read_all()


PRESETS = {
    "laptop": Preset("5,000 labelled galaxies and 12 tiles: about a minute on two cores", SurveyConfig()),
    "debug": Preset("a few galaxies, in seconds", SurveyConfig(labelled=400, tiles=1)),
}
