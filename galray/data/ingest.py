"""Catalogue x images -> galaxy shards, rejects and a manifest, on Ray Data.

A plan, made in one task from tables and listings alone, has one row for each thing that came in:
every row of the catalogue, every image that no row names. Workers then read and check the images,
block by block, and each block ends as a shard of good rows and one of rejects.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import pyarrow as pa
import ray

from galray.core.cluster import say
from galray.core.config import JobConfig, Preset, require
from galray.core.errors import ImageRejected
from galray.core.manifest import Manifest, publish, standing
from galray.core.schema import GALAXY_SCHEMA, REJECT_SCHEMA, split_of
from galray.core.shards import rejects_told, write_shards
from galray.core.tracking import track
from galray.data.images import SAFE_PIXELS, check_image, crop_centre, decode_rgb, encode_jpeg, resize
from galray.data.plan import plan_gz2, plan_images, plan_labelled
from galray.data.sources import Bytes, ImageSource, ParquetSource, open_source
from galray.data.tables import read_catalogue


@dataclass(frozen=True, kw_only=True)
class IngestConfig(JobConfig):
    """Which tables and images come in, and how strictly they are checked."""

    votes: str = ""
    """Galaxy Zoo 2 vote table (Hart et al. 2016): CSV, CSV.gz, FITS or Parquet."""
    mapping: str = ""
    """Filename mapping (objid, sample, asset_id), with ra and dec if they are known; empty where the vote
    table has asset_id itself, or where there are no votes and files are called by their ids."""
    images: str = ""
    """Folder, bucket prefix or .zip of <asset_id>.jpg; without --votes nothing more is known of them."""
    labelled: str = ""
    """Instead of the three above: Parquet file or folder with galaxy_id, label, image."""
    output: str = "{root}/galaxies"
    survey: str = "gz2"
    """Name of the survey, kept with every galaxy."""
    source: Literal["real", "mock"] = "real"
    statistic: Literal["weighted_fraction", "debiased", "fraction"] = "weighted_fraction"
    """Which published vote fraction describes what is seen in the image."""
    expected_size_px: int = 424
    """Height and width that every image must have; 0 takes any."""
    verify: Literal["header", "decode"] = "header"
    """Check each image's structure, or decode every pixel (about eight times slower)."""
    max_pixels: int = SAFE_PIXELS
    """An image that claims more is a decompression bomb."""
    crop_px: int = 0
    """Keep the central square of each image; 0 keeps the bytes as they came."""
    resize_px: int = 0
    """Resample each image to this size; 0 keeps the bytes as they came."""

    def __post_init__(self) -> None:
        require(
            bool(self.images) != bool(self.labelled),
            "Give either --images, the folder or .zip of the images, with their --votes if there are any, or "
            "--labelled.",
        )
        for name in ("votes", "mapping"):
            lost = self.labelled and getattr(self, name)
            require(not lost, f"--{name} goes with --images, not with --labelled.")
        for name in ("expected_size_px", "crop_px", "resize_px"):
            require(getattr(self, name) >= 0, f"--{name.replace('_', '-')} cannot be negative.")


class Examine:
    """Read and check the images of a block of the plan, and complete its rows.

    Called by Ray Data with blocks of the plan; returns them with the columns of the galaxy shard,
    and a reason for each row that is set aside.
    """

    def __init__(self, config: IngestConfig, source: ImageSource) -> None:
        self._config = config
        self._source = source
        size = config.expected_size_px
        self._expected = (size, size) if size else None

    def __call__(self, block: pa.Table) -> pa.Table:
        columns: dict[str, list[Any]] = {name: [None] * len(block) for name in ("image", "height", "width")}
        columns |= {name: block[name].to_pylist() for name in ("item", "reason", "detail")}
        pending = [i for i, reason in enumerate(columns["reason"]) if reason is None]
        for i, data in zip(pending, self._source.read([columns["item"][i] for i in pending]), strict=True):
            try:
                columns["image"][i], columns["height"][i], columns["width"][i] = self._accept(data)
            except ImageRejected as rejection:
                columns["reason"][i], columns["detail"][i] = rejection.reason, rejection.detail
        return self._complete(block, columns)

    def _accept(self, data: Bytes) -> tuple[bytes, int, int]:
        """Return the image's bytes, as they came unless asked otherwise, with its height and width."""
        if isinstance(data, ImageRejected):
            raise data
        height, width = check_image(
            data,
            expected_size_px=self._expected,
            max_pixels=self._config.max_pixels,
            decode=self._config.verify == "decode",
        )
        if not (self._config.crop_px or self._config.resize_px):
            return data, height, width
        rgb = decode_rgb(data)
        rgb = crop_centre(rgb, self._config.crop_px) if self._config.crop_px else rgb
        rgb = resize(rgb, self._config.resize_px) if self._config.resize_px else rgb
        return encode_jpeg(rgb), rgb.shape[0], rgb.shape[1]

    def _complete(self, block: pa.Table, columns: dict[str, list[Any]]) -> pa.Table:
        place, kept = self._source.location.uri, ("row", "id_text", "galaxy_id", "ra", "dec", "votes")
        origin = [
            json.dumps({"image": f"{place}/{item}", "row": row})
            for item, row in zip(columns["item"], block["row"].to_pylist(), strict=True)
        ]
        table = block.select([*kept, "classifications", "label"])
        added = {
            "split": split_of(block["galaxy_id"].to_numpy()).tolist(),
            "survey": [self._config.survey] * len(block),
            "source": [self._config.source] * len(block),
            "provenance": origin,
        }
        for name, values in (columns | added).items():
            table = table.append_column(pa.field(name, _EXAMINED[name]), pa.array(values, _EXAMINED[name]))
        return table


_EXAMINED = {field.name: field.type for field in (*GALAXY_SCHEMA, *REJECT_SCHEMA)}


@ray.remote(num_cpus=1, max_retries=2)
def _plan_blocks(config: IngestConfig) -> Iterator[pa.Table]:
    """Make the plan on a worker, so that the driver never holds it."""
    if config.labelled:
        yield from plan_labelled(ParquetSource(config.location(config.labelled)))
        return
    mapping = read_catalogue(config.location(config.mapping)) if config.mapping else None
    source = open_source(config.location(config.images))
    if config.votes:
        votes = read_catalogue(config.location(config.votes))
        yield from plan_gz2(votes, mapping, source, config.statistic).blocks()
    else:
        yield from plan_images(mapping, source).blocks()


def ingest(config: IngestConfig) -> Manifest:
    """Check a catalogue and its images, and write them as galaxy shards.

    Raises
    ------
    InputError
        Missing columns, no usable row, inputs that cannot be read.
    PublishError
        The output already stands.
    StorageError
        A place that cannot be reached or written.
    """
    output = config.location(config.output)
    done = standing(output, "galaxies", config.resume)
    if done:
        say(f"ingest: {output.uri} stands with {done.counts['rows_out']} galaxies")
        return done
    source = _source(config)
    with track("ingest", config) as run, publish(output, "galaxies", config.resolved()) as publication:
        plan: Any = _plan_blocks.options(num_returns="streaming").remote(config)
        examined = ray.data.from_arrow_refs(list(plan)).map_batches(
            Examine(config, source).__call__, batch_size=None, batch_format="pyarrow"
        )
        write_shards(examined, publication, GALAXY_SCHEMA)
        run.metrics(publication.counts)
    counts = publication.counts
    told = f"{counts['rows_in']} rows in, {counts['rows_out']} galaxies, {rejects_told(counts)}"
    say(f"ingest: {told} -> {output.uri}")
    return Manifest.read(output)


def _source(config: IngestConfig) -> ImageSource:
    if config.labelled:
        return ParquetSource(config.location(config.labelled))
    return open_source(config.location(config.images))


_GZ2 = IngestConfig(
    votes="{root}/survey/votes.csv.gz",
    mapping="{root}/survey/filename_mapping.csv",
    images="{root}/survey/images.zip",
    survey="mock",
    source="mock",
    expected_size_px=64,
)

PRESETS = {
    "gz2": Preset(
        "Galaxy Zoo 2 as it is published: give --votes, --mapping and --images",
        IngestConfig(votes="gz2_hart16.csv.gz", mapping="gz2_filename_mapping.csv", images="images"),
    ),
    "labelled": Preset(
        "Parquet with galaxy_id, label, image: give --labelled",
        IngestConfig(labelled="galaxies", expected_size_px=0),
    ),
    "images": Preset(
        "images without votes or labels, to train on or to scan: give --images, and --mapping if any",
        IngestConfig(images="images", expected_size_px=0),
    ),
    "mock": Preset("the mock survey of this pipeline", _GZ2),
    "debug": Preset("the mock survey of this pipeline, every pixel decoded", replace(_GZ2, verify="decode")),
}
