"""Study whether synthetic galaxies help, and with how many labels, against the best baseline."""

from galray.core.job import run_job
from galray.search.study import PRESETS, study

if __name__ == "__main__":
    run_job(study, PRESETS)
