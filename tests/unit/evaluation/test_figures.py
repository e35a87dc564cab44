"""Figures are drawn whatever is missing."""

import io

import numpy as np
import pytest
from matplotlib.figure import Figure

from galray.classifier.confusion import classification
from galray.diffusion.fidelity import Nearest, matched_draws
from galray.evaluation import figures
from galray.evaluation.compare import brightness, near_copies
from galray.evaluation.sample import Judge
from galray.evaluation.sections import BRIGHTNESS_GOALS
from tests.unit.evaluation.conftest import MakeSample

IMAGE = np.full((8, 8, 3), 90, dtype=np.uint8)


def drawn(figure: Figure) -> None:
    """Render a figure; what cannot be laid out warns, and warnings are errors."""
    figure.savefig(io.BytesIO(), dpi=30)


def test_grid_says_which_side_has_no_galaxy() -> None:
    figure = figures.galaxy_grid({"edge_on": ([IMAGE] * 3, [IMAGE]), "spiral": ([], [IMAGE] * 2)})
    drawn(figure)
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    assert titles == ["edge on: real above, synthetic below", "spiral (no real galaxy)"]


@pytest.mark.parametrize("unmeasured", [False, True])
def test_comparison_figures(judge: Judge, make_sample: MakeSample, unmeasured: bool) -> None:
    real, synthetic = make_sample(np.arange(40) % 5), make_sample(np.arange(30) % 5, seed=1)
    draw = next(matched_draws(real.morphology, synthetic.morphology, seed=0))
    drawn(figures.feature_plane(real, synthetic, draw))
    size = np.full(40, np.nan) if unmeasured else real.flux
    figure = figures.quantities([({"size": size}, {"size": synthetic.flux}, draw)])
    drawn(figure)
    assert figure.axes[0].get_xlabel() == "half-light radius [px]"
    rows = brightness(judge.strata, real.light(judge), synthetic.light(judge), seed=0)
    drawn(figures.brightness_by_kind(rows, BRIGHTNESS_GOALS))
    reports = [classification(s.morphology, s.predicted, judge.config.class_names) for s in (real, synthetic)]
    drawn(figures.confusion(reports[0], reports[1]))


def test_copies_are_shown_nearest_first() -> None:
    near = Nearest(np.linspace(0, 1, 20), np.arange(20))
    drawn(
        figures.copies(
            {"a": (near, near)} | {"b": (near, near)},
            {k: near_copies(near, near, 0.1) for k in "ab"},
            {"a": "x", "b": "y"},
        )
    )
    drawn(figures.closest_pairs({"synthetic, closest in pixels": [(IMAGE, IMAGE, 0.25)]}))
