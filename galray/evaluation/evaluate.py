"""Judge synthetic galaxies against real ones that no model has seen, and report it."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import numpy as np
from matplotlib import rc_context

from galray.classifier.confusion import classification
from galray.core.cluster import say
from galray.core.config import Preset
from galray.core.manifest import Manifest, publish, standing
from galray.core.tracking import flatten, track
from galray.data.images import resize
from galray.diffusion.fidelity import Nearest
from galray.evaluation import compare, figures
from galray.evaluation.compare import Findings
from galray.evaluation.evidence import (
    EvaluateConfig,
    Evidence,
    Lineage,
    check_lineage,
    gather,
    images_of,
)
from galray.evaluation.morphometry import PHOTOMETRY
from galray.evaluation.report import FIGURES, Picture, Report
from galray.evaluation.sample import THUMBNAIL_PX, Sample
from galray.evaluation.sections import BRIGHTNESS_GOALS, sections, verdicts

_KINDS = ("synthetic", "held-out real")
_UNITS = {"features": "features", "pixels": "pixels (r.m.s.)"}


def evaluate(config: EvaluateConfig) -> Manifest:
    """Judge synthetic galaxies: consistency, realism, diversity, physical distances, memorisation.

    Raises
    ------
    LineageError
        See `evidence.check_lineage`.
    InputError
        What is needed is not published, or no galaxy is left to judge.
    """
    output = config.location(config.output)
    done = standing(output, "evaluation", config.resume)
    if done:
        say(f"evaluate: {output.uri} stands")
        return done
    lineage = check_lineage(config)
    with (
        track("evaluate", config) as run,
        publish(output, "evaluation", config.resolved(), lineage.parents) as publication,
    ):
        evidence = gather(config, lineage)
        findings = weigh(config, evidence)
        with rc_context(dict(figures.STYLE)):
            pictures = draw(config, lineage, evidence, findings)
        report = write(config, findings, pictures)
        files = {
            "metrics.json": json.dumps(findings.as_dict(), indent=1).encode(),
            "report.md": report.markdown().encode(),
            "report.html": report.html().encode(),
            **{f"{FIGURES}/{picture.name}": picture.png for picture in pictures.values()},
        }
        for name, content in files.items():
            publication.write(name, content)
            run.file(name, content)
        publication.counts |= findings.counts
        publication.lineage = {"judged_on": [config.split]}
        run.metrics(_tracked(findings))
    for verdict in report.verdicts:
        say(f"evaluate: {verdict.word}: {verdict.goal}: {verdict.found}")
    say(f"evaluate: {output.uri}/report.html")
    return Manifest.read(output)


def _tracked(findings: Findings) -> dict[str, float]:
    """Return the findings under names that MLflow takes."""
    return {name.replace(",", ""): value for name, value in flatten(findings.as_dict()).items()}


def weigh(config: EvaluateConfig, evidence: Evidence) -> Findings:
    """Compare the synthetic with the real galaxies in every respect."""
    real, synthetic, judge, shapes = evidence.real, evidence.synthetic, evidence.judge, evidence.shapes
    quantities = compare.physical_distances(_photometry(real), _photometry(synthetic), evidence.draws)
    brightness = partial(compare.brightness, judge.strata, seed=config.seed)
    painted, held_out = synthetic.light(judge), real.light(judge)
    return Findings(
        counts=_counts(evidence),
        consistency=compare.consistency(real, synthetic, judge, config.seed),
        features=compare.feature_distances(real, synthetic, evidence.draws, config.neighbours),
        physical=quantities | compare.physical_distances(shapes.real, shapes.synthetic, shapes.draws),
        brightness=brightness(held_out, painted),
        brightness_floor=brightness(held_out, evidence.trained_on),
        brightness_learnt=brightness(evidence.trained_on, painted),
        copies={
            name: compare.near_copies(*pair, config.copy_quantile)
            for name, pair in evidence.neighbours.nearest.items()
        },
    )


def _photometry(sample: Sample) -> dict[str, np.ndarray]:
    return {name: getattr(sample, name) for name in PHOTOMETRY}


def _counts(evidence: Evidence) -> dict[str, int]:
    shapes = evidence.shapes
    counts = {
        "real": len(evidence.real),
        "synthetic": len(evidence.synthetic),
        "training": evidence.neighbours.training,
        "per_draw": len(evidence.draws[0].real),
        "per_shape_draw": len(shapes.draws[0].real),
    }
    for kind, sample, measured in (
        ("real", evidence.real, shapes.real),
        ("synthetic", evidence.synthetic, shapes.synthetic),
    ):
        known = (sample.morphology >= 0) | (sample.truth >= 0)
        tried, failed = len(measured["size"]), shapes.failures[kind]
        counts |= {
            f"unjudged.{kind}": int((~known).sum()),
            f"tried.{kind}": tried,
            f"measured.{kind}": tried - failed.total(),
        } | {f"unmeasured.{kind}.{reason}": count for reason, count in failed.items()}
    return counts


def draw(
    config: EvaluateConfig, lineage: Lineage, evidence: Evidence, findings: Findings
) -> dict[str, Picture]:
    """Draw the figures of the report, by the names of its sections."""
    real, synthetic, judge = evidence.real, evidence.synthetic, evidence.judge
    first, shapes = evidence.draws[0], evidence.shapes
    reports = [classification(s.morphology, s.predicted, judge.config.class_names) for s in (real, synthetic)]
    drawn = {
        "grid": (
            figures.galaxy_grid(_chosen_images(config, evidence)),
            f"Real {config.split} galaxies above synthetic ones of the same kind, chosen at random (seed "
            f"{config.seed}).",
        ),
        "confusion": (
            figures.confusion(*reports),
            "What the classifier sees in galaxies of each class, as shares of the row.",
        ),
        "features": (
            figures.feature_plane(real, synthetic, first),
            "The first draw in the plane of the first two principal components of its real features.",
        ),
        "quantities": (
            figures.quantities(
                [
                    (_photometry(real), _photometry(synthetic), first),
                    (shapes.real, shapes.synthetic, shapes.draws[0]),
                ]
            ),
            "Measured quantities in the first draw, real filled, synthetic outlined.",
        ),
        "brightness": (
            figures.brightness_by_kind(findings.brightness, BRIGHTNESS_GOALS),
            "Relative differences of brightness with 95% intervals; the goals are shaded.",
        ),
        "copies": (
            figures.copies(evidence.neighbours.nearest, findings.copies, _UNITS),
            "Distances to the nearest training galaxy; within the dashed line lie "
            f"{config.copy_quantile:.1%} of the held-out galaxies.",
        ),
        "closest": (
            figures.closest_pairs(_closest_images(config, lineage, evidence)),
            "The closest pairs of all: galaxies above, the training galaxies nearest to them below, with the "
            "distance. Training galaxies may stand in another orientation.",
        ),
    }
    return {name: Picture.of(f"{name}.png", figure, caption) for name, (figure, caption) in drawn.items()}


def _chosen_images(
    config: EvaluateConfig, evidence: Evidence
) -> dict[str, tuple[list[np.ndarray], list[np.ndarray]]]:
    """Return random images of each kind that synthetic galaxies have: (real, synthetic)."""
    rng = np.random.default_rng(config.seed)
    judge, size_px = evidence.judge, evidence.judge.config.size_px
    sides = []
    for sample, uri, kind in (
        (evidence.real, config.galaxies, "galaxies"),
        (evidence.synthetic, config.synthetic, "synthetic"),
    ):
        strata = sample.stratum(judge)
        ids = [
            rng.permutation(sample.galaxy_id[strata == index])[: config.shown]
            for index in range(len(judge.strata))
        ]
        images = images_of(config.location(uri), kind, np.concatenate(ids))
        sides.append([[resize(images[galaxy], size_px) for galaxy in of.tolist()] for of in ids])
    rows = {
        name: (real, painted) for name, real, painted in zip(judge.strata, sides[0], sides[1], strict=True)
    }
    return {name: pair for name, pair in rows.items() if pair[1]}


def _closest_images(
    config: EvaluateConfig, lineage: Lineage, evidence: Evidence
) -> dict[str, list[tuple[np.ndarray, np.ndarray, float]]]:
    """Return the closest pairs in each distance, of synthetic and of held-out galaxies."""
    found = evidence.neighbours
    pairs = {
        f"{kind}, closest in {name}": _closest(sample, nearest, config.shown)
        for name, both in found.nearest.items()
        for kind, sample, nearest in zip(_KINDS, (found.synthetic, found.held_out), both, strict=True)
    }
    ids, training_ids, _ = zip(*(pair for of in pairs.values() for pair in of), strict=True)
    galaxies = images_of(config.location(config.synthetic), "synthetic", ids)
    galaxies |= images_of(config.location(config.galaxies), "galaxies", ids)
    training: dict[int, np.ndarray] = {}
    for uri in {uri for uri, _ in lineage.trained_on}:
        training |= images_of(config.location(uri), "galaxies", training_ids)
    size_px = evidence.judge.config.size_px
    return {
        heading: [(resize(galaxies[a], size_px), resize(training[b], size_px), d) for a, b, d in of]
        for heading, of in pairs.items()
    }


def _closest(sample: Sample, nearest: Nearest, count: int) -> list[tuple[int, int, float]]:
    """Return (galaxy, its nearest training galaxy, distance) of the closest, by id."""
    rows = np.argsort(nearest.distance, kind="stable")[:count]
    columns = (sample.galaxy_id[rows], nearest.galaxy_id[rows], nearest.distance[rows])
    return list(zip(*(column.tolist() for column in columns), strict=True))


def write(config: EvaluateConfig, findings: Findings, pictures: dict[str, Picture]) -> Report:
    """Put the findings into a report."""
    counts = findings.counts
    return Report(
        title="Fidelity of synthetic galaxies",
        facts={
            "synthetic galaxies": f"{counts['synthetic']:,}, {config.location(config.synthetic).uri}",
            "judged against": f"{counts['real']:,} real {config.split} galaxies, "
            f"{config.location(config.galaxies).uri}",
            "classifier": config.location(config.classifier).uri,
            "seed": str(config.seed),
        },
        verdicts=verdicts(findings),
        sections=sections(
            findings, pictures, split=config.split, draws=config.draws, thumbnail_px=THUMBNAIL_PX
        ),
    )


PRESETS = {
    "laptop": Preset("some thousands of galaxies: a few minutes on two cores", EvaluateConfig()),
    "debug": Preset(
        "a handful of draws and shapes, in seconds",
        replace(EvaluateConfig(), draws=4, shapes=16, shown=4, copy_quantile=0.1),
    ),
}
