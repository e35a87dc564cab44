"""Run the whole chain on a mock survey: ingest, train, paint, classify, search, scan, compare."""

from galray.core.job import run_job
from galray.quickstart import PRESETS, quickstart

if __name__ == "__main__":
    run_job(quickstart, PRESETS)
