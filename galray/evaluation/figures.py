"""The figures of a fidelity report: real galaxies in grey, synthetic ones in orange, throughout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from galray.classifier.confusion import ClassReport
from galray.core.intervals import Estimate
from galray.core.pictures import blank_figure
from galray.diffusion.fidelity import Draw, Nearest
from galray.evaluation.compare import Brightness, NearCopies
from galray.evaluation.sample import Sample

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE: dict[Any, Any] = {"font.family": "STIXGeneral", "mathtext.fontset": "stix", "font.size": 9}
REAL, SYNTHETIC = "#4d4d4d", "#d55e00"  # told apart by eyes of every kind
_GOAL = "#dfeee6"
_WIDTH_IN = 8.0
_FONT: dict[str, Any] = {"fontsize": 9}
_COLUMNS = 4
_LEAST_COLUMNS = 8  # of images: fewer would be blown up
_AXIS_LABELS = {
    "brightness": "brightness",
    "flux": "flux above the sky",
    "g_r": "g − r",
    "r_i": "r − i",
    "size": "half-light radius [px]",
    "ellipticity": "ellipticity",
    "concentration": "concentration",
    "asymmetry": "asymmetry",
    "gini": "Gini",
    "m20": "M20",
}


def galaxy_grid(rows: Mapping[str, tuple[Sequence[np.ndarray], Sequence[np.ndarray]]]) -> Figure:
    """Show real above synthetic galaxies, two strips for each kind.

    Parameters
    ----------
    rows : mapping
        Kind -> (real, synthetic) uint8 images (H, H, 3), all of one size.
    """
    columns = max(_LEAST_COLUMNS, *(len(images) for pair in rows.values() for images in pair))
    height = _WIDTH_IN / columns
    figure = blank_figure(_WIDTH_IN, len(rows) * (2 * height + 0.34) + 0.1)
    axes = figure.subplots(max(len(rows), 1), 1, squeeze=False)[:, 0]
    for ax, (name, (real, synthetic)) in zip(axes, rows.items(), strict=False):
        strips = [_strip(images, columns) for images in (real, synthetic)]
        present = [strip for strip in strips if strip is not None]
        if present:
            ax.imshow(np.concatenate(present), aspect="equal", interpolation="nearest")
        missing = [n for n, strip in zip(("real", "synthetic"), strips, strict=True) if strip is None]
        note = f" (no {' or '.join(missing)} galaxy)" if missing else ": real above, synthetic below"
        ax.set_title(name.replace("_", " ") + note, loc="left", **_FONT)
        ax.set_axis_off()
    return figure


def _strip(images: Sequence[np.ndarray], columns: int) -> np.ndarray | None:
    """Join images (H, H, 3) side by side with white seams; None where there is none."""
    if not len(images):
        return None
    size = images[0].shape[0]
    seam = max(size // 32, 1)
    strip = np.full((size + seam, columns * (size + seam), 3), 255, dtype=np.uint8)
    for column, image in enumerate(images):
        left = column * (size + seam)
        strip[:size, left : left + size] = image
    return strip


def confusion(real: ClassReport, synthetic: ClassReport) -> Figure:
    """Draw what the classifier sees in galaxies of each class, as shares of a row."""
    figure = blank_figure(_WIDTH_IN, 3.6)
    axes = figure.subplots(1, 2, sharey=True)
    names = [name.replace("_", " ") for name in real.classes]
    for ax, report, title in zip(axes, (real, synthetic), ("real", "synthetic"), strict=True):
        counts = report.confusion
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        ax.imshow(shares, cmap="Greys" if title == "real" else "Oranges", vmin=0, vmax=1)
        for (row, column), share in np.ndenumerate(shares):
            if counts[row].sum():
                colour = "white" if share > 0.6 else "black"
                ax.text(column, row, f"{share:.2f}", ha="center", va="center", color=colour, fontsize=8)
        ax.set_xticks(range(len(names)), names, rotation=30, ha="right", **_FONT)
        ax.set_yticks(range(len(names)), names, **_FONT)
        ax.set_title(f"{title} ({counts.sum():,})", **_FONT)
        ax.set_xlabel("the classifier sees", **_FONT)
    axes[0].set_ylabel("true, or asked for", **_FONT)
    return figure


def feature_plane(real: Sample, synthetic: Sample, draw: Draw) -> Figure:
    """Show one draw in the plane of the two principal components of real features."""
    a, b = real.features[draw.real], synthetic.features[draw.synthetic]
    centre = a.mean(axis=0)
    axes_of_plane = np.linalg.svd(a - centre, full_matrices=False)[2][:2].T
    figure = blank_figure(_WIDTH_IN, 3.4)
    axes = figure.subplots(1, 2, sharex=True, sharey=True)
    for ax, points, colour, name in zip(axes, (a, b), (REAL, SYNTHETIC), ("real", "synthetic"), strict=True):
        x, y = ((points - centre) @ axes_of_plane).T
        ax.plot(x, y, ".", color=colour, markersize=3, alpha=0.5, markeredgewidth=0)
        ax.set_title(f"{name} ({len(points):,})", **_FONT)
        ax.set_xlabel("first principal component", **_FONT)
        _plain(ax)
    axes[0].set_ylabel("second principal component", **_FONT)
    return figure


def quantities(measured: Sequence[tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray], Draw]]) -> Figure:
    """Draw the distribution of each measured quantity.

    Parameters
    ----------
    measured : sequence
        (real, synthetic, draw): quantities by name, and the rows of either to show.
    """
    panels = {
        name: (values[draw.real], synthetic[name][draw.synthetic])
        for real, synthetic, draw in measured
        for name, values in real.items()
    }
    rows = -(-len(panels) // _COLUMNS)
    figure = blank_figure(_WIDTH_IN, 1.55 * rows + 0.2)
    axes = figure.subplots(rows, _COLUMNS, squeeze=False).flatten()
    for ax, (name, sides) in zip(axes, panels.items(), strict=False):
        real, synthetic = (values[np.isfinite(values)] for values in sides)
        _distribution(ax, real, synthetic)
        ax.set_xlabel(_AXIS_LABELS[name], **_FONT)
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    axes[0].legend(frameon=False, fontsize=8)
    return figure


def _distribution(ax: Any, real: np.ndarray, synthetic: np.ndarray, name: str = "real") -> None:
    """Draw the densities of two samples, the middle 99% of them."""
    both = np.concatenate([real, synthetic])
    if len(both):
        edges = np.histogram_bin_edges(both, _bins(len(both) // 2), _middle(both))
        for values, style in ((real, {"alpha": 0.35}), (synthetic, {"histtype": "step", "lw": 1.3})):
            if len(values):
                colour, label = (REAL, name) if values is real else (SYNTHETIC, "synthetic")
                ax.hist(values, edges, density=True, color=colour, label=label, **style)
    ax.set_yticks([])
    _plain(ax)


def _bins(count: int) -> int:
    return int(np.clip(np.sqrt(count), 6, 30))


def _middle(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, [0.005, 0.995])
    return (float(low), float(high)) if high > low else (float(low) - 0.5, float(low) + 0.5)


def brightness_by_kind(rows: Sequence[Brightness], goals: Mapping[str, float]) -> Figure:
    """Draw relative differences of brightness with their intervals, and the goals as bands."""
    figure = blank_figure(_WIDTH_IN, 0.32 * len(rows) + 1.1)
    axes = figure.subplots(1, 3, sharey=True)
    names = [row.name.replace("_", " ") for row in rows]
    for ax, (key, goal) in zip(axes, goals.items(), strict=True):
        ax.axvspan(-100 * goal, 100 * goal, color=_GOAL, lw=0)
        ax.axvline(0, color="black", lw=0.6)
        _intervals(ax, [getattr(row, key) for row in rows])
        ax.set_yticks(range(len(names)), names, **_FONT)
        ax.set_xlabel(f"{_DIFFERENCES[key]}: difference [%]", **_FONT)
        ax.set_ylim(len(rows) - 0.5, -0.5)
        _plain(ax)
    return figure


_DIFFERENCES = {"mean": "mean", "percentile_5": "5th percentile", "percentile_95": "95th percentile"}


def _intervals(ax: Any, estimates: Sequence[Estimate]) -> None:
    value, low, high = (100 * np.array([getattr(e, part) for e in estimates]) for part in _PARTS)
    errors = np.abs([value - low, high - value])
    ax.errorbar(value, range(len(value)), xerr=errors, fmt="o", color=SYNTHETIC, markersize=4, lw=1.2)


_PARTS = ("value", "low", "high")


def copies(
    nearest: Mapping[str, tuple[Nearest, Nearest]],
    found: Mapping[str, NearCopies],
    units: Mapping[str, str],
) -> Figure:
    """Draw how near the nearest training galaxy is, of synthetic and of held-out galaxies."""
    figure = blank_figure(_WIDTH_IN, 2.6)
    axes = figure.subplots(1, len(nearest))
    for ax, (name, (synthetic, held_out)) in zip(axes, nearest.items(), strict=True):
        _distribution(ax, held_out.distance, synthetic.distance, "held-out real")
        ax.axvline(found[name].threshold, color="black", lw=0.8, ls="--")
        ax.set_xlabel(f"to the nearest training galaxy, in {units[name]}", **_FONT)
    axes[0].legend(frameon=False, fontsize=8)
    return figure


def closest_pairs(pairs: Mapping[str, Sequence[tuple[np.ndarray, np.ndarray, float]]]) -> Figure:
    """Show galaxies above the training galaxies nearest to them.

    Parameters
    ----------
    pairs : mapping
        Heading -> (galaxy, its nearest training galaxy, distance), closest first; images uint8 (H, H, 3).
    """
    columns = max(_LEAST_COLUMNS, *(len(of) for of in pairs.values()))
    height = _WIDTH_IN / columns
    figure = blank_figure(_WIDTH_IN, len(pairs) * (2 * height + 0.5))
    parts = figure.subfigures(len(pairs), 1, squeeze=False)[:, 0]
    for part, (heading, of) in zip(parts, pairs.items(), strict=True):
        part.suptitle(heading, x=0.01, ha="left", **_FONT)
        axes = part.subplots(2, columns, squeeze=False)
        for ax in axes.flat:
            ax.set_axis_off()
        for column, (galaxy, nearest, distance) in enumerate(of):
            axes[0, column].imshow(galaxy)
            axes[0, column].set_title(f"{distance:.3g}", fontsize=8, pad=2)
            axes[1, column].imshow(nearest)
    return figure


def _plain(ax: Any) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=8)
