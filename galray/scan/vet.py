"""Candidates and their graders' files -> a graded catalogue, and labelled galaxies for training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from galray.core.cluster import say
from galray.core.config import JobConfig, Preset, require
from galray.core.manifest import Manifest, local_folder, publish, standing, write_parquet
from galray.core.schema import GRADES
from galray.core.shards import REJECTS, SHARDS, count_rows
from galray.core.storage import Location
from galray.core.tracking import track
from galray.scan.agreement import cohen_kappas, completeness, fleiss_kappa, purity_by_rank
from galray.scan.candidates import tables
from galray.scan.document import Document, Section
from galray.scan.vetting import FATES, labelled_galaxies, merge, purity, read_grades

_SEED = 0  # of the bootstrap: the same report every time


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
    PublishError
        An output already stands.
    """
    output, place = config.location(config.output), config.location(config.galaxies)
    done = standing(output, "vetted", config.resume)
    taught = standing(place, "galaxies", config.resume)
    if done and (taught or not done.counts["confirmed"] + done.counts["refuted"]):
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
    report = vet_report(graded, manifest.counts["sources"], candidates.uri)
    with track("vet", config) as run:
        if not done:
            done = _publish_graded(config, parents, graded, strangers, len(grades), fates, report)
        if len(galaxies) and not taught:
            _publish_galaxies(config, parents, galaxies, fates)
        share = purity(graded)
        run.metrics({**done.counts, "purity": share.value, "purity_low": share.low})
    told = f"{done.counts['graded']} of {len(graded)} sources graded; purity of the list {share}"
    say(f"vet: {told} -> {output.uri}/report.html")
    if len(galaxies):
        say(f"vet: {len(galaxies)} labelled galaxies ({_listed(fates, FATES[:2])}) -> {place.uri}")
    else:
        say("vet: nothing to learn from: no candidate with a cutout and a grade of A, B or reject may teach")
    say(f"vet: left out: {_listed(fates, FATES[2:])}")
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


def vet_report(graded: pa.Table, n_sources: int, where: str) -> Document:
    """Write out what the grades tell.

    Parameters
    ----------
    graded : pyarrow.Table
        `galray.scan.vetting.GRADED_SCHEMA`.
    n_sources : int
        Sources that the survey scored.
    where : str
        The candidates, for people.
    """
    return Document(
        title="Graded candidates",
        about=f"Grades of {where}: A and B confirm, C is unclear.",
        sections=[
            _grades_section(graded),
            _purity_section(graded),
            _completeness_section(graded, n_sources),
            _agreement_section(graded),
        ],
        note="Shares carry 95% Wilson score intervals and their counts; kappas 95% bootstrap intervals.",
    )


def _grades_section(graded: pa.Table) -> Section:
    grades = graded["grade"].to_pylist()
    rows = [[grade or "ungraded", str(grades.count(grade))] for grade in (*GRADES, None)]
    return Section("Grades", "The graders' majority; ties go to the worse.", rows)


def _purity_section(graded: pa.Table) -> Section:
    text = f"Confirmed among the graded candidates: {purity(graded)}."
    rows = [[f"{first} to {last}", str(rate)] for first, last, rate in purity_by_rank(graded)]
    return Section("Purity by rank", text, [["rank", "confirmed"], *rows], has_header=True)


def _completeness_section(graded: pa.Table, n_sources: int) -> Section:
    heading, measured = "Completeness", completeness(graded, n_sources)
    if measured is None:
        text = "Cannot be told: no source outside the list is graded. Scan with --random-share, and grade."
        return Section(heading, text)
    share, missed = measured
    return Section(
        heading,
        f"The list holds {share} of the survey's true ones: outside it, {missed} of the graded random arm "
        f"are confirmed, of {n_sources:,} sources in all.",
    )


def _agreement_section(graded: pa.Table) -> Section:
    kappa, count = fleiss_kappa(graded, seed=_SEED)
    if not count:
        return Section("Agreement", "One grader alone: give the files of several to see how far they agree.")
    text = f"Fleiss' kappa over {count} sources of two graders or more: {kappa}."
    rows = [
        [" and ".join(pair), str(both), str(value)]
        for pair, (value, both) in cohen_kappas(graded, seed=_SEED).items()
    ]
    return Section(
        "Agreement", text, [["graders", "graded by both", "Cohen's kappa"], *rows], has_header=True
    )


def _publish_graded(
    config: VetConfig,
    parents: dict[str, str],
    graded: pa.Table,
    strangers: pa.Table,
    n_grades: int,
    fates: dict[str, int],
    report: Document,
) -> Manifest:
    """Publish the graded catalogue, and the grades that belong to no candidate as rejects."""
    output = config.location(config.output)
    with publish(output, "vetted", config.resolved(), parents) as publication:
        for extension, data in tables(graded).items():
            publication.write(f"graded.{extension}", data, len(graded))
        for name, data in report.files("report").items():
            publication.write(name, data)
        if len(strangers):
            publication.add(write_parquet(output, f"{REJECTS}/part-00000.parquet", strangers))
        publication.counts |= {
            "rows_in": n_grades,
            "rows_out": n_grades - len(strangers),
            "rejects": len(strangers),
            "candidates": len(graded),
            "graded": len(graded) - graded["grade"].null_count,
            **fates,
        }
    return Manifest.read(output)


def _publish_galaxies(
    config: VetConfig, parents: dict[str, str], galaxies: pa.Table, fates: dict[str, int]
) -> None:
    place = config.location(config.galaxies)
    with publish(place, "galaxies", config.resolved(), parents) as publication:
        publication.add(write_parquet(place, f"{SHARDS}/part-00000.parquet", galaxies))
        count_rows(publication)
        publication.counts |= fates


def _listed(fates: dict[str, int], names: Sequence[str]) -> str:
    return ", ".join(f"{fates[name]} {name.replace('_', ' ')}" for name in names)


_VET = VetConfig(grades=("grades.csv",))

PRESETS = {
    "vet": Preset("give --grades: the CSV files that the candidate page exported", _VET),
    "debug": Preset("the same for the mock survey", replace(_VET, survey="mock", source="mock")),
}
