"""Train the classifier that finds a rare target, on real and synthetic galaxies."""

from galray.classifier.train import PRESETS, classify
from galray.core.job import run_job

if __name__ == "__main__":
    run_job(classify, PRESETS)
