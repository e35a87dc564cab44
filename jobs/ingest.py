"""Ingest a labelled survey: catalogue and images in, galaxy shards out."""

from galray.core.job import run_job
from galray.data.ingest import PRESETS, ingest

if __name__ == "__main__":
    run_job(ingest, PRESETS)
