"""Paint labelled synthetic galaxies with a trained denoiser."""

from galray.core.job import run_job
from galray.diffusion.synthesize import PRESETS, synthesize

if __name__ == "__main__":
    run_job(synthesize, PRESETS)
