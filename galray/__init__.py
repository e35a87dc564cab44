"""Find rare galaxies: paint them, learn them, scan surveys for them."""

__version__ = "0.1.0"
