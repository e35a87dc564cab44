"""Judge synthetic galaxies against real ones: a fidelity report."""

from galray.core.job import run_job
from galray.evaluation.evaluate import PRESETS, evaluate

if __name__ == "__main__":
    run_job(evaluate, PRESETS)
