"""How good synthetic galaxies are: measured against real ones that no model has seen."""
