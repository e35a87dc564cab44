"""Label galaxies: a classifier and galaxies in, a list for --labelled of those that it is sure of out."""

from galray.classifier.labelling import PRESETS, label
from galray.core.job import run_job

if __name__ == "__main__":
    run_job(label, PRESETS)
