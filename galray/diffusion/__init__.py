"""The conditional denoiser: train it, and let it paint galaxies."""
