"""Scan a survey: catalogue and tiles, or cutouts, and a classifier in; scores and candidates out."""

from galray.core.job import run_job
from galray.scan.options import PRESETS
from galray.scan.scan import scan

if __name__ == "__main__":
    run_job(scan, PRESETS)
