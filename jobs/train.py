"""Train the denoiser: a conditional diffusion model of galaxies."""

from galray.core.job import run_job
from galray.diffusion.train import PRESETS, train

if __name__ == "__main__":
    run_job(train, PRESETS)
