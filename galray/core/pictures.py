"""Figures, blank and as files."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def blank_figure(width_in: float, height_in: float) -> Figure:
    """Return a figure without axes, of a size in inches, whose parts make room for one another.

    Imported here alone and late: matplotlib takes half a second, and few of Ray's processes draw.
    """
    from matplotlib.figure import Figure

    return Figure(figsize=(width_in, height_in), layout="constrained")


def png(figure: Figure, dpi: int) -> bytes:
    """Draw a figure, once for all who keep it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()
