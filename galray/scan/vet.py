"""Candidates and their graders' files -> a graded catalogue, and labelled galaxies for training."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from galray.core.cluster import say
from galray.core.config import JobConfig, Preset, require
from galray.core.manifest import Manifest, local_folder, publish, standing, write_parquet
from galray.core.shards import REJECTS, SHARDS, count_rows
from galray.core.storage import Location
from galray.core.tracking import track
from galray.scan.candidates import tables
from galray.scan.vetting import labelled_galaxies, merge, purity, read_grades


@dataclass(frozen=True, kw_only=True)
class VetConfig(JobConfig):
    """Whose grades of which candidates come in."""

    grades: tuple[str, ...] = ()
    """CSV files of grades, as the candidate page exports them; a later file wins over an earlier one."""
    candidates: str = "{root}/candidates"
    output: str = "{root}/vetted"
    galaxies: str = "{root}/vetted-galaxies"
    """Where confirmed and refuted candidates go, as labelled galaxies."""
    survey: str = "vetted"
    """Name of the survey, kept with every labelled galaxy."""
    source: Literal["real", "mock"] = "real"

    def __post_init__(self) -> None:
        require(bool(self.grades), "Give --grades: one or more CSV files that the candidate page exported.")


def vet(config: VetConfig) -> Manifest:
    """Merge grades into the candidates: publish the graded catalogue, and labelled galaxies.

    Returns
    -------
    Manifest
        Of the graded catalogue.

    Raises
    ------
    MissingColumnError, InputError
        Grades that cannot be read.
    EmptyInputError
        No candidate is both decided and has its cutout.
    PublishError
        An output already stands.
    """
    output, place = config.location(config.output), config.location(config.galaxies)
    done = standing(output, "vetted", config.resume)
    taught = standing(place, "galaxies", config.resume)
    if done and taught:
        say(f"vet: {output.uri} stands with {done.counts['graded']} graded candidates")
        return done
    candidates = config.location(config.candidates)
    manifest = Manifest.read(candidates, "candidates")
    grades = read_all_grades(config)
    graded, strangers = merge(read_candidates(candidates), grades)
    galaxies, fates = labelled_galaxies(
        graded, manifest.lineage["target"], survey=config.survey, source=config.source
    )
    parents = {candidates.uri: manifest.fingerprint}
    with track("vet", config) as run:
        if not done:
            done = _publish_graded(config, parents, graded, strangers, len(grades))
        if not taught:
            taught = _publish_galaxies(config, parents, galaxies, fates)
        share = purity(graded)
        run.metrics({**done.counts, **fates, "purity": share.value, "purity_low": share.low})
    say(f"vet: {done.counts['graded']} of {len(graded)} candidates graded; purity {share} -> {output.uri}")
    say(f"vet: {len(galaxies)} labelled galaxies ({_listed(fates)}) -> {place.uri}")
    return done


def read_all_grades(config: VetConfig) -> pa.Table:
    """Read every file of grades; one row for each galaxy and grader, the latest file's."""
    places = [config.location(uri) for uri in config.grades]
    read = [read_grades(place.read_bytes(), place.uri) for place in places]
    latest = {(row["galaxy_id"], row["grader"]): row for table in read for row in table.to_pylist()}
    return pa.Table.from_pylist(list(latest.values()), schema=read[0].schema)


def read_candidates(location: Location) -> pa.Table:
    """Read a published candidate list, cutouts included."""
    with local_folder(location, "candidates") as folder:
        return pq.read_table(folder / "candidates.parquet")


def _publish_graded(
    config: VetConfig, parents: dict[str, str], graded: pa.Table, strangers: pa.Table, n_grades: int
) -> Manifest:
    """Publish the graded catalogue, and the grades that belong to no candidate as rejects."""
    output = config.location(config.output)
    with publish(output, "vetted", config.resolved(), parents) as publication:
        for extension, data in tables(graded).items():
            publication.write(f"graded.{extension}", data, len(graded))
        if len(strangers):
            publication.add(write_parquet(output, f"{REJECTS}/part-00000.parquet", strangers))
        publication.counts |= {
            "rows_in": n_grades,
            "rows_out": n_grades - len(strangers),
            "rejects": len(strangers),
            "candidates": len(graded),
            "graded": len(graded) - graded["grade"].null_count,
        }
    return Manifest.read(output)


def _publish_galaxies(
    config: VetConfig, parents: dict[str, str], galaxies: pa.Table, fates: dict[str, int]
) -> Manifest:
    place = config.location(config.galaxies)
    with publish(place, "galaxies", config.resolved(), parents) as publication:
        publication.add(write_parquet(place, f"{SHARDS}/part-00000.parquet", galaxies))
        count_rows(publication)
        publication.counts |= fates
    return Manifest.read(place)


def _listed(fates: dict[str, int]) -> str:
    return ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in fates.items())


_VET = VetConfig(grades=("grades.csv",))

PRESETS = {
    "vet": Preset("give --grades: the CSV files that the candidate page exported", _VET),
    "debug": Preset("the same for the mock survey", replace(_VET, survey="mock", source="mock")),
}
