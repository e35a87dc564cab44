"""Which point comes next: Optuna's suggestions through Ray Tune, each point once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from optuna import Study
from optuna.trial import TrialState
from ray.tune.search.optuna import OptunaSearch

from galray.search.space import REAL_ONLY, Point, Space

_ASKS = 30


class PointSearch(OptunaSearch):
    """Optuna's suggestions: known points first, then each new one once.

    In a space of a few values for each dimension Optuna suggests what it likes again and again; a point that
    was tried with all its seeds tells nothing new. Where it names no new one it gets the next that is left.

    Parameters
    ----------
    space : Space
    known : sequence of Point
        What an interrupted search had begun.
    objectives : sequence of str
        Figures to maximise; with two, Optuna looks for their Pareto front.
    seed : int
    """

    def __init__(self, space: Space, known: Sequence[Point], objectives: Sequence[str], seed: int) -> None:
        first = [*known, *({REAL_ONLY} - set(known))]
        several = len(objectives) > 1
        super().__init__(
            space.distributions(),
            metric=list(objectives) if several else objectives[0],
            mode=["max"] * len(objectives) if several else "max",
            points_to_evaluate=[space.places(point) for point in first],
            seed=seed,
        )
        self._points = space
        self._suggested: set[Point] = set()

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """Return the next point as Tune's parameters; None, for the end, where all have been tried."""
        left = [point for point in self._points.points() if point not in self._suggested]
        if not left:
            return self.FINISHED  # pyright: ignore[reportReturnType]  Tune's own sign
        point = self._ask(trial_id)
        for _ in range(_ASKS):
            if point not in self._suggested:
                break
            self._forget(trial_id)
            point = self._ask(trial_id)
        else:
            self._forget(trial_id)
            self._study.enqueue_trial(self._points.places(left[0]))
            point = self._ask(trial_id)
        self._suggested.add(point)
        return {"point": asdict(point)}

    def _ask(self, trial_id: str) -> Point:
        return self._points.point(super().suggest(trial_id) or {})

    def _forget(self, trial_id: str) -> None:
        self._study.tell(self._ot_trials.pop(trial_id), state=TrialState.FAIL)

    @property
    def _study(self) -> Study:
        assert self._ot_study  # made at once where the space is given
        return self._ot_study
