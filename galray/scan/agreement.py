"""What grades tell: how far graders agree, how pure the list is by rank, how complete it is.

Kappas are 1 where graders agree always, 0 where no more than chance makes them; the categories are
confirmed (A, B), unclear (C) and rejected. Their intervals are 95% bootstrap over the candidates.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa
from sklearn.metrics import cohen_kappa_score

from galray.core.intervals import Estimate, Rate, bootstrapped
from galray.scan.vetting import CONFIRMED

_CATEGORY = {"A": 0, "B": 0, "C": 1, "reject": 2}
_N_CATEGORIES = 3
_FIRST_RANKS = 10
_RESAMPLES = 300


def cohen_kappas(graded: pa.Table, *, seed: int) -> dict[tuple[str, str], tuple[Estimate, int]]:
    """Return Cohen's kappa of each two graders, with the number of candidates that both graded.

    Parameters
    ----------
    graded : pyarrow.Table
        `galray.scan.vetting.GRADED_SCHEMA`.
    seed : int
        Of the bootstrap.
    """
    given = _given(graded)
    graders = sorted({grader for grades in given for grader in grades})
    kappas = {}
    for pair in combinations(graders, 2):
        both = np.array([[_CATEGORY[g[name]] for name in pair] for g in given if set(pair) <= set(g)])
        if len(both):
            kappas[pair] = bootstrapped(_cohen, both, seed=seed, n_resamples=_RESAMPLES), len(both)
    return kappas


def fleiss_kappa(graded: pa.Table, *, seed: int) -> tuple[Estimate, int]:
    """Return Fleiss' kappa (1971, Psychological Bulletin 76, 378) over candidates of two graders or more.

    Each candidate's agreement counts by its own number of graders, so that graders may have seen
    different parts of the list.

    Returns
    -------
    kappa : Estimate
        NaN where fewer than two candidates tell.
    count : int
        Candidates that two or more graded.
    """
    counts = np.array(
        [
            np.bincount([_CATEGORY[grade] for grade in grades.values()], minlength=_N_CATEGORIES)
            for grades in _given(graded)
            if len(grades) > 1
        ]
    ).reshape(-1, _N_CATEGORIES)
    if not len(counts):
        return Estimate(np.nan, 0.0, 1.0), 0
    return bootstrapped(_fleiss, counts, seed=seed, n_resamples=_RESAMPLES), len(counts)


def purity_by_rank(graded: pa.Table) -> list[tuple[int, int, Rate]]:
    """Return the share of A and B among the graded, for ranks 1 to 10, 11 to 20, 21 to 40, and so on.

    Returns
    -------
    list of (int, int, Rate)
        First and last rank, and the share; the random arm has no ranks.
    """
    pairs = zip(*_ranks_and_grades(graded), strict=True)
    rows = [(rank, grade) for rank, grade in pairs if rank is not None]
    last_rank, first, last, shares = max((rank for rank, _ in rows), default=0), 1, _FIRST_RANKS, []
    while first <= last_rank:
        grades = [grade for rank, grade in rows if first <= rank <= last and grade is not None]
        shares.append((first, min(last, last_rank), _confirmed(grades)))
        first, last = last + 1, 2 * last
    return shares


def completeness(graded: pa.Table, n_sources: int) -> tuple[Estimate, Rate] | None:
    """Return which share of the survey's true ones the list holds, from the random arm.

    The list holds A true ones, its confirmed share times its length. Of the N sources outside it, the
    random arm shows a share p to be true: completeness is A / (A + N p). Its interval is that of p, a
    Wilson score interval; the list's own share is taken as it is.

    Parameters
    ----------
    graded : pyarrow.Table
        `galray.scan.vetting.GRADED_SCHEMA`.
    n_sources : int
        Sources that the survey scored.

    Returns
    -------
    completeness : Estimate
    missed : Rate
        The share of true ones among the graded sources outside the list.
    None
        Where nothing of the list, or nothing outside it, is graded.
    """
    ranks, grades = _ranks_and_grades(graded)
    inside = [g for rank, g in zip(ranks, grades, strict=True) if rank is not None and g is not None]
    outside = [g for rank, g in zip(ranks, grades, strict=True) if rank is None and g is not None]
    if not inside or not outside:
        return None
    n_listed = len(ranks) - ranks.count(None)
    true_listed = _confirmed(inside).value * n_listed
    missed = _confirmed(outside)
    value, low, high = (
        _share(true_listed, (n_sources - n_listed) * rate) for rate in (missed.value, missed.high, missed.low)
    )
    return Estimate(value, low, high), missed


def _share(listed: float, missed: float) -> float:
    return float(listed / (listed + missed)) if listed + missed > 0 else np.nan


def _confirmed(grades: Sequence[str]) -> Rate:
    return Rate(sum(grade in CONFIRMED for grade in grades), len(grades))


def _given(graded: pa.Table) -> list[Mapping[str, Any]]:
    return [json.loads(text) for text in graded["grades"].to_pylist()]


def _ranks_and_grades(graded: pa.Table) -> tuple[list[int | None], list[str | None]]:
    return graded["rank"].to_pylist(), graded["grade"].to_pylist()


def _cohen(both: np.ndarray) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a kappa that has no meaning, which is NaN
        return float(cohen_kappa_score(both[:, 0], both[:, 1], labels=range(_N_CATEGORIES)))


def _fleiss(counts: np.ndarray) -> float:
    """Return Fleiss' kappa of counts, int, shape (candidates, categories); NaN where all is one category."""
    graders = counts.sum(axis=1)
    observed = ((counts * (counts - 1)).sum(axis=1) / (graders * (graders - 1))).mean()
    by_chance = ((counts.sum(axis=0) / counts.sum()) ** 2).sum()
    return float((observed - by_chance) / (1 - by_chance)) if by_chance < 1 else np.nan
