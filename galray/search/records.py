"""What became of each point of a search, as files that outlive the driver.

A trial is one point, below ``trials/<point>``: ``begun.json`` says what it is and where it is tracked,
``seed-<n>/epochs`` holds the validation figures after each epoch, ``seed-<n>`` is published with the
classifier and its predictions once that seed is through, and ``ended.json`` is written when the trial is
over, stopped early or not.

Ray Tune's own restoring is not used. Its snapshot lags behind, so that trials which have ended since are
run again; it starts all failed trials at once, whatever the number that may run together; and it knows
nothing of the training inside a trial. With these records a resumed search asks for its points again, the
known ones first; each tells Tune in a moment what it told before, which gives Optuna and the scheduler back
what they knew, and goes on from there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from galray.core.manifest import MANIFEST
from galray.core.storage import Location
from galray.search.space import Point

TRIALS = "trials"
_BEGUN, _ENDED, _EPOCHS = "begun.json", "ended.json", "epochs"

Figures = dict[str, float]


@dataclass(frozen=True)
class TrialRecord:
    """The folder of one point.

    Attributes
    ----------
    location : Location
    point : Point
    """

    location: Location
    point: Point

    @classmethod
    def of(cls, search: Location, point: Point) -> TrialRecord:
        return cls(search / TRIALS / point.key, point)

    def begin(self, run_id: str) -> str:
        """Take note that the trial has begun; returns the tracked run that it first had."""
        begun = self.location / _BEGUN
        if begun.create(json.dumps({"point": asdict(self.point), "run_id": run_id}).encode()):
            return run_id
        return json.loads(begun.read_bytes())["run_id"]

    @property
    def run_id(self) -> str:
        """The tracked run of a trial that has begun; empty before."""
        begun = self.location / _BEGUN
        return json.loads(begun.read_bytes())["run_id"] if begun.exists() else ""

    def end(self) -> None:
        """Take note that the trial is over and will not go on."""
        (self.location / _ENDED).write_bytes(b"{}\n")

    @property
    def ended(self) -> bool:
        return (self.location / _ENDED).exists()

    def seed(self, seed: int) -> Location:
        """Return where the classifier of one seed is trained and published."""
        return self.location / f"seed-{seed}"

    def published(self, seed: int) -> bool:
        """Whether the training with this seed is through."""
        return (self.seed(seed) / MANIFEST).exists()

    def add_epoch(self, seed: int, figures: Mapping[str, float]) -> None:
        """Take note of the validation figures after an epoch, which is their ``step``."""
        place = self.seed(seed) / _EPOCHS / f"{int(figures['step']):04d}.json"
        place.write_bytes(f"{json.dumps(dict(figures))}\n".encode())

    def epochs(self, seed: int) -> list[Figures]:
        """Return the validation figures after each epoch so far."""
        folder = self.seed(seed) / _EPOCHS
        return [json.loads((folder / name).read_bytes()) for name in sorted(folder.names())]


def begun(search: Location) -> list[TrialRecord]:
    """Return the trials that have begun, whole ones first: in this order Optuna best learns what it knew."""
    trials = search / TRIALS
    marks = [name for name in trials.names() if name.endswith(f"/{_BEGUN}")]
    contents = [json.loads((trials / mark).read_bytes()) for mark in marks]
    found = [TrialRecord.of(search, Point(**content["point"])) for content in contents]
    return sorted(found, key=lambda record: (not record.ended, record.point))


def mean_figures(figures: Sequence[Mapping[str, float]]) -> Figures:
    """Return the mean of each figure over seeds."""
    return {name: sum(one[name] for one in figures) / len(figures) for name in figures[0]}


def trial_rows(record: TrialRecord, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Return a row for each seed with which a point was tried: its last epoch, and if it is through."""
    rows = []
    for seed in seeds:
        epochs = record.epochs(seed)
        if epochs:
            last = {name: value for name, value in epochs[-1].items() if name not in ("step", "loss")}
            known = {"seed": seed, "epochs": int(epochs[-1]["step"]), "through": record.published(seed)}
            rows.append({**asdict(record.point), **known, **last})
    return rows
