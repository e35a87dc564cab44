"""The figures of a search: a heat map of the points, and completeness against purity."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from galray.core.pictures import blank_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CHOSEN, _FRONT, _OTHERS = "#d55e00", "#0072b2", "#8c8c8c"  # told apart by eyes of every kind


def heat_map(points: pd.DataFrame, figure_name: str) -> Figure:
    """Draw the mean of a figure at every guidance and ratio, with its 95% interval over seeds.

    Of points that differ in other ways alone the best is shown; one that was stopped early is in brackets.

    Parameters
    ----------
    points : DataFrame
        As `galray.search.ranking.rank` returns them, best first.
    """
    augmented: Any = points[points["augmentation_ratio"] > 0]
    augmented = augmented.drop_duplicates(["guidance_scale", "augmentation_ratio"])
    guidances = sorted(augmented["guidance_scale"].unique())
    ratios = sorted(augmented["augmentation_ratio"].unique())
    figure = blank_figure(3.0 + 1.3 * len(ratios), 2.0 + 0.7 * len(guidances))
    ax = figure.subplots()
    grid = np.full((len(guidances), len(ratios)), np.nan)
    for _, point in augmented.iterrows():
        row, column = guidances.index(point["guidance_scale"]), ratios.index(point["augmentation_ratio"])
        grid[row, column] = point[figure_name]
        colour = "black" if point[figure_name] > 0.6 else "white"
        ax.text(column, row, _cell(point, figure_name), ha="center", va="center", color=colour, fontsize=8)
    ax.imshow(grid, cmap="cividis", aspect="auto", origin="lower", vmin=0, vmax=1)
    ax.set_xticks(range(len(ratios)), [f"{ratio:g}" for ratio in ratios])
    ax.set_yticks(range(len(guidances)), [f"{guidance:g}" for guidance in guidances])
    ax.set(xlabel="synthetic for each real galaxy", ylabel="guidance scale")
    real_only: Any = points[points["augmentation_ratio"] == 0].iloc[0]
    ax.set_title(
        f"validation {figure_name.replace('_', ' ')}\nreal only: {_cell(real_only, figure_name, ' ')}",
        fontsize=9,
    )
    return figure


def _cell(point: Any, name: str, joint: str = "\n") -> str:
    value, low, high = point[name], point[f"{name}_low"], point[f"{name}_high"]
    text = f"{value:.3f}" if np.isnan(low) else f"{value:.3f}{joint}[{low:.2f}, {high:.2f}]"
    return text if point["complete"] else f"({text})"


def pareto_front(points: pd.DataFrame) -> Figure:
    """Draw completeness against purity of every complete point, with intervals, the front and the choice."""
    complete: Any = points[points["complete"]]
    figure = blank_figure(5.2, 4.2)
    ax = figure.subplots()
    for place, (_, point) in enumerate(complete.iterrows()):
        colour = _CHOSEN if place == 0 else _FRONT if point["on_front"] else _OTHERS
        marker = "s" if point["augmentation_ratio"] == 0 else "o"
        ax.errorbar(
            point["completeness"],
            point["purity"],
            xerr=_reach(point, "completeness"),
            yerr=_reach(point, "purity"),
            fmt=marker,
            color=colour,
            markersize=6 if place else 9,
            lw=0.8,
        )
    front = complete[complete["on_front"]].sort_values("completeness")
    ax.plot(front["completeness"], front["purity"], color=_FRONT, lw=1, zorder=0)
    ax.set(xlabel="validation completeness", ylabel="validation purity", xlim=(0, 1.02), ylim=(0, 1.02))
    ax.set_title("orange: chosen; blue: on the front; square: real galaxies only", fontsize=9)
    return figure


def _reach(point: Any, name: str) -> list[list[float]] | None:
    """Return the interval as matplotlib wants it; None with one seed."""
    if np.isnan(point[f"{name}_low"]):
        return None
    return [[point[name] - point[f"{name}_low"]], [point[f"{name}_high"] - point[name]]]
