"""From trials to a ranking of points: means over seeds with their intervals, the Pareto front, the choice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t as student

from galray.core.intervals import CONFIDENCE, Estimate
from galray.search.space import DIMENSIONS, Point

POINT = list(DIMENSIONS)


SHARE = (0.0, 1.0)


def over_seeds(
    values: Sequence[float] | np.ndarray, within: tuple[float, float] = (-np.inf, np.inf)
) -> Estimate:
    """Return a mean over seeds with its 95% interval, Student's t; NaN bounds where there is one seed.

    Parameters
    ----------
    values : sequence of float, shape (seeds,)
    within : tuple of float
        What the figure can be, such as a `SHARE`: of two seeds Student's interval may reach further.
    """
    values = np.asarray(values, dtype=np.float64)
    mean, seeds = float(values.mean()), len(values)
    if seeds < 2:
        return Estimate(mean, np.nan, np.nan)
    reach = float(student.ppf((1 + CONFIDENCE) / 2, seeds - 1) * values.std(ddof=1) / np.sqrt(seeds))
    low, high = np.clip((mean - reach, mean + reach), *within).tolist()
    return Estimate(mean, low, high)


def rank(trials: pd.DataFrame, objectives: Sequence[str], seeds: int) -> pd.DataFrame:
    """Return a row for each point, best first; those that were stopped early come last.

    Parameters
    ----------
    trials : DataFrame
        A row for each point and seed: the point, ``seed``, ``through``, and figures.
    objectives : sequence of str
        One figure, by whose mean points are ranked; or two, of which the harmonic mean counts: it
        ranks points of the Pareto front that give up much of one for little of the other low.
    seeds : int
        How many seeds a point needs to be ``complete``.

    Returns
    -------
    DataFrame
        The point, ``seeds``, ``complete``, ``on_front``; of each figure its mean, and the bounds
        ``<figure>_low`` and ``<figure>_high`` of `over_seeds`.
    """
    figures = [name for name in trials.columns if name not in (*POINT, "seed", "epochs", "through")]
    rows = []
    grouped: Any = trials.groupby(POINT, sort=True)
    for values, of_point in grouped:
        row: dict[str, Any] = dict(zip(POINT, values, strict=True))
        row |= {"seeds": int(of_point["through"].sum())}
        row |= {"complete": row["seeds"] == seeds, **_with_bounds(of_point, figures)}
        rows.append(row)
    points = pd.DataFrame(rows)
    points["on_front"] = on_front(points[list(objectives)].to_numpy(), points["complete"])
    points["_worth"] = worth(points, objectives)
    order = points.sort_values(["complete", "_worth"], ascending=False, kind="stable")
    return order.drop(columns="_worth").reset_index(drop=True)


def _with_bounds(of_point: Any, figures: Sequence[str]) -> dict[str, float]:
    through = of_point[of_point["through"]]
    counted = through if len(through) else of_point
    found: dict[str, float] = {}
    for name in figures:
        estimate = over_seeds(counted[name].to_numpy(), SHARE)
        found |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
    return found


def worth(points: pd.DataFrame, objectives: Sequence[str]) -> np.ndarray:
    """Return the one number by which points are ranked: the harmonic mean of their objectives."""
    values = points[list(objectives)].to_numpy(dtype=np.float64)
    if (values <= 0).any():
        values = np.maximum(values, 1e-9)
    return len(objectives) / (1 / values).sum(axis=1)


def on_front(values: np.ndarray, candidates: Any = True) -> np.ndarray:
    """Return which points no other is at least as good as in everything and better in something.

    Parameters
    ----------
    values : ndarray of float, shape (points, objectives)
        More is better.
    candidates : ndarray of bool, shape (points,), optional
        The points that take part.
    """
    takes_part = np.broadcast_to(candidates, len(values)) & np.isfinite(values).all(axis=1)
    others = values[takes_part]
    beaten = [bool(((others >= one).all(axis=1) & (others > one).any(axis=1)).any()) for one in values]
    return ~np.array(beaten) & takes_part


def point_of(row: Any) -> Point:
    """Return the point of a row."""
    return Point(**{name: type(getattr(Point(), name))(row[name]) for name in POINT})


def why(points: pd.DataFrame, trials: pd.DataFrame, objectives: Sequence[str]) -> str:
    """Say which point was chosen, by what, and how far it is from real galaxies alone and from the next."""
    best, judged = point_of(points.iloc[0]), " and ".join(name.replace("_", " ") for name in objectives)
    counted = "the highest mean" if len(objectives) == 1 else "the highest harmonic mean"
    complete = sum(points["complete"])
    stopped = len(points) - complete
    lines = [
        f"Chosen: {best}. Of {complete} points that ran with every seed it has {counted} of validation "
        f"{judged}: " + _told(points.iloc[0], objectives) + ".",
    ]
    if stopped:
        lines.append(f"{stopped} more were stopped early, behind the others at the same epoch and seed.")
    others = points[points["complete"]].iloc[1:]
    if len(others):
        following = others.iloc[0]
        lines.append(f"Next: {point_of(following)}, {_told(following, objectives)}.")
    if best.painting:
        lines += [_against_real_only(trials, best, name) for name in objectives]
    return "\n".join(lines) + "\n"


def _told(row: Any, objectives: Sequence[str]) -> str:
    return ", ".join(
        f"{name.replace('_', ' ')} {told(Estimate(row[name], row[f'{name}_low'], row[f'{name}_high']))}"
        for name in objectives
    )


def told(estimate: Estimate) -> str:
    """Write an estimate; one seed has no interval."""
    return f"{estimate.value:.3f} (one seed)" if np.isnan(estimate.low) else str(estimate)


def _against_real_only(trials: pd.DataFrame, best: Point, figure: str) -> str:
    """Say how much is gained over real galaxies alone, seed by seed."""
    gained = over_seeds(_of(trials, best, figure) - _of(trials, Point(), figure))
    if np.isnan(gained.low):
        decided = "one seed decides nothing"
    elif gained.low > 0 or gained.high < 0:
        decided = "the interval excludes zero"
    else:
        decided = "the interval includes zero: not decided"
    return f"Against real galaxies alone, seed by seed, {figure.replace('_', ' ')} {gained.value:+.3f}" + (
        f": {decided}." if np.isnan(gained.low) else f" [{gained.low:+.3f}, {gained.high:+.3f}]: {decided}."
    )


def _of(trials: pd.DataFrame, point: Point, figure: str) -> np.ndarray:
    """Return a figure of one point for each seed, in their order."""
    rows: Any = trials[(trials[POINT] == [getattr(point, name) for name in POINT]).all(axis=1)]
    return rows.sort_values("seed")[figure].to_numpy()
