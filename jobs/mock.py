"""Write a mock survey with known truth, to try every other job on."""

from galray.core.job import run_job
from galray.data.survey import PRESETS, make_survey

if __name__ == "__main__":
    run_job(make_survey, PRESETS)
