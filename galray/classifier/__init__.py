"""The classifier that learns from real and synthetic galaxies."""
