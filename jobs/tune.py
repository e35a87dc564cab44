"""Search guidance scale and augmentation ratio against completeness and purity."""

from galray.core.job import run_job
from galray.search.tune import PRESETS, search

if __name__ == "__main__":
    run_job(search, PRESETS)
