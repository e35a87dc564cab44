"""What holds for all tests."""

import galray  # noqa: F401  before any test imports ray: it sets what ray reads at its import
