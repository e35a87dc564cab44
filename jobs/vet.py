"""Vet candidates: their grades in; a graded catalogue, and labelled galaxies for training, out."""

from galray.core.job import run_job
from galray.scan.vet import PRESETS, vet

if __name__ == "__main__":
    run_job(vet, PRESETS)
