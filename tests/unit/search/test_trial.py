"""What a trial tells Ray Tune: its first seed's epochs, then means; and the same again when it is resumed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from galray.core.manifest import publish
from galray.core.storage import Location, open_location
from galray.search import trial
from galray.search.config import PRESETS
from galray.search.records import TrialRecord
from galray.search.space import Point

POINT = Point(2.0, 0.25, 4, 1.0)
CONFIG = PRESETS["debug"].config.__class__(
    guidance_scales=(2.0,),
    augmentation_ratios=(0.25,),
    seeds=(0, 1, 2),
    classify=PRESETS["debug"].config.classify,
)


class Tune:
    """Stands for Ray Tune and for the training: keeps what is told, and which seeds were trained."""

    def __init__(self, search: Location, killed_in: int | None = None) -> None:
        self.search, self.killed_in = search, killed_in
        self.told: list[dict[str, float]] = []
        self.trained: list[int] = []
        self.ended = False

    def __call__(self, record: TrialRecord, run: Any) -> Tune:  # noqa: ARG002 (as Following is made)
        return self

    def of_seed(self, seed: int, tells: bool) -> Tune:  # noqa: ARG002 (as Following has it)
        self.tells = tells
        return self

    def tell(self, figures: Mapping[str, float]) -> None:
        self.told.append(dict(figures))

    def end(self) -> None:
        self.ended = True

    def train(self, config: Any, record: TrialRecord, seed: int, following: Tune) -> None:  # noqa: ARG002
        """Report two epochs, the second better; be killed before the second, where that is asked for."""
        self.trained.append(seed)
        for step in (1, 2):
            if step == 2 and seed == self.killed_in:
                raise KeyboardInterrupt
            figures = {"step": step, "f1": 0.1 * step + seed}
            record.add_epoch(seed, figures)
            if self.tells:
                self.tell(figures)
        with publish(record.seed(seed), "trial", {"resume": True}):
            pass


def run(monkeypatch: pytest.MonkeyPatch, tune: Tune) -> None:
    monkeypatch.setattr(trial, "Following", tune)
    monkeypatch.setattr(trial, "train_seed", tune.train)
    monkeypatch.setattr(trial, "tracked", lambda record, run: record.begin(run))
    trial.try_point({"point": vars(POINT)}, CONFIG, tune.search, "run")  # pyright: ignore[reportArgumentType]


def steps_and_figures(tune: Tune) -> list[tuple[float, float]]:
    return [(one["step"], round(one["f1"], 6)) for one in tune.told]


WHOLE = [
    (1, 0.1),
    (2, 0.2),
    (2, 0.2),
    (4, 0.7),
    (6, 1.2),
]  # two epochs, then means over one, two, three seeds


def test_epochs_of_the_first_seed_then_means_over_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tune = Tune(open_location(str(tmp_path)))
    run(monkeypatch, tune)
    assert steps_and_figures(tune) == WHOLE
    assert tune.trained == [0, 1, 2]
    assert tune.ended


def test_what_is_through_is_told_again_and_not_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = Tune(open_location(str(tmp_path)), killed_in=1)
    with pytest.raises(KeyboardInterrupt):
        run(monkeypatch, killed)
    again = Tune(killed.search)
    run(monkeypatch, again)
    assert again.trained == [1, 2]
    assert steps_and_figures(again) == WHOLE
    third = Tune(killed.search)
    run(monkeypatch, third)
    assert third.trained == []
    assert steps_and_figures(third) == WHOLE


def test_a_trial_that_was_stopped_early_does_not_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = Tune(open_location(str(tmp_path)), killed_in=0)
    with pytest.raises(KeyboardInterrupt):
        run(monkeypatch, killed)
    TrialRecord.of(killed.search, POINT).end()
    again = Tune(killed.search)
    run(monkeypatch, again)
    assert again.trained == []
    assert steps_and_figures(again) == [(1, 0.1)]
    assert again.ended
