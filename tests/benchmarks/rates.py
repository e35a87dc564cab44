"""Rates, and how a job's compare with those of what it is measured against."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence


def per_s(finished_s: Iterable[float], workers: int) -> float:
    """Return pieces a second, from when each process had its first done to the end of the last."""
    times = sorted(finished_s)
    return (len(times) - workers) / (times[-1] - times[workers - 1])


def compared(job: Sequence[float], other: Sequence[float], name: str = "bare") -> dict[str, object]:
    """Return the medians of images a second over runs that alternated, and their ratios."""
    of_job, of_other = statistics.median(job), statistics.median(other)
    return {
        "job_images_per_s": float(f"{of_job:.4g}"),
        f"{name}_images_per_s": float(f"{of_other:.4g}"),
        "ratio": round(of_job / of_other, 3),
        "ratios": [round(a / b, 3) for a, b in zip(job, other, strict=True)],
    }
