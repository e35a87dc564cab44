"""Gather galaxies: several published folders in, such as graded candidates and GZ2; one folder out."""

from galray.core.job import run_job
from galray.data.gather import PRESETS, gather

if __name__ == "__main__":
    run_job(gather, PRESETS)
