"""The report holds what was found, whatever was found, and stands alone."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from galray.core.intervals import Estimate, Rate
from galray.evaluation.compare import Agreement, Brightness, Comparison, Findings, NearCopies
from galray.evaluation.report import Picture, Report, Section
from galray.evaluation.sections import sections, verdicts

COUNTS = {
    "real": 100, "synthetic": 50, "training": 800, "per_draw": 20, "per_shape_draw": 9,
    "unjudged.real": 0, "unjudged.synthetic": 3, "tried.real": 20, "tried.synthetic": 20,
    "measured.real": 20, "measured.synthetic": 18, "unmeasured.synthetic.no source at the centre": 2,
}  # fmt: skip
NOTHING = Estimate(np.nan, np.nan, np.nan)


def findings(ratio: float = 0.95, difference: float = 0.01, copied: int = 1) -> Findings:
    estimate = Estimate(ratio, ratio - 0.02, ratio + 0.02)
    small, dark = (Estimate(d, d - 0.02, d + 0.02) for d in (difference, -difference))
    return Findings(
        counts=COUNTS,
        consistency=[Agreement("all classes", Rate(45, 50), Rate(95, 100), estimate)],
        features={"frechet_distance": Comparison(estimate, NOTHING)},
        physical={"g_r": Comparison(small, small)},
        brightness=[Brightness("edge_on", 50, 100, small, dark, dark)],
        brightness_floor=[Brightness("edge_on", 900, 100, dark, small, small)],
        brightness_learnt=[Brightness("edge_on", 50, 900, small, dark, dark)],
        copies={"pixels": NearCopies(0.01, 0.03, Rate(copied, 100), Rate(1, 100))},
    )


def words(**changed: Any) -> dict[str, str]:
    """Return the verdict on each goal, by the goal's first word."""
    return {verdict.goal.split()[0]: verdict.word for verdict in verdicts(findings(**changed))}


def test_goals_are_reached() -> None:
    assert set(words().values()) == {"reached"}


@pytest.mark.parametrize(
    ("changed", "goals", "word"),
    [
        ({"ratio": 0.89}, ["consistency"], "undecided"),  # its interval reaches 0.91
        ({"ratio": 0.85}, ["consistency"], "missed"),
        ({"difference": 0.03}, ["mean"], "undecided"),
        ({"difference": 0.05}, ["mean"], "missed"),
        ({"difference": 0.09}, ["mean", "5th", "95th"], "missed"),
        ({"copied": 2}, ["near-copies"], "undecided"),
        ({"copied": 20}, ["near-copies"], "missed"),
    ],
)
def test_goals_are_missed_beyond_the_interval_only(changed: dict, goals: list[str], word: str) -> None:
    expected = dict.fromkeys(words(), "reached") | dict.fromkeys(goals, word)
    assert words(**changed) == expected


def test_the_verdict_is_on_the_kind_that_misses_for_sure() -> None:
    sure, noisy = Estimate(0.04, 0.03, 0.05), Estimate(0.3, -0.2, 0.8)
    rows = [Brightness(name, 9, 9, e, e, e) for name, e in (("edge_on", sure), ("spiral", noisy))]
    verdict = verdicts(replace(findings(), brightness=rows))[1]
    assert verdict.word == "missed"
    assert "edge on, the worst of 2" in verdict.found


def test_what_could_not_be_measured_is_neither_reached_nor_missed() -> None:
    empty = Findings(COUNTS, [Agreement("all", Rate(0, 0), Rate(0, 0), NOTHING)], {}, {}, [], [], [], {})
    assert {verdict.word for verdict in verdicts(empty)} == {"not measured"}


@pytest.fixture
def report() -> Report:
    picture = Picture("grid.png", b"\x89PNG not really", 'Galaxies <real> & "synthetic"')
    written = sections(findings(), {"grid": picture}, split="validation", draws=4, thumbnail_px=16)
    return Report("Fidelity", {"denoiser": "s3://<b>/denoiser"}, verdicts(findings()), written)


class Tags(HTMLParser):
    """Collect what a page loads, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        assert tag != "script"

    def handle_data(self, data: str) -> None:
        self.text += data


def test_page_needs_nothing_else(report: Report) -> None:
    page = Tags()
    page.feed(report.html())
    assert len(page.sources) == 1
    assert page.sources[0].startswith("data:image/png;base64,")
    assert "s3://<b>/denoiser" in page.text  # as text, not as a tag
    assert "95.0% [93.0, 97.0]" in page.text
    assert "18 of 20 synthetic ones succeeded (not: 2 no source at the centre)" in page.text
    assert "3 synthetic galaxies" in page.text


def test_markdown_shows_figures_beside_it_and_the_same_numbers(report: Report) -> None:
    text = report.markdown()
    assert "](figures/grid.png)" in text
    assert "| all classes | 90.0% [78.6, 95.7] (45/50) |" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    for section in report.sections:
        assert f"## {section.title}" in text
    assert all(row.endswith("|") for row in rows)
    assert not re.search(r"\n{3,}", text)


def test_brightness_stands_beside_that_of_the_training_galaxies(report: Report) -> None:
    section: Section = next(s for s in report.sections if s.title == "Brightness by kind")
    assert section.columns[-1] == "floor of the mean"
    assert section.rows[0][3] == "+1.0% [-1.0, +3.0]"
    assert section.rows[0][-1] == "-1.0% [-3.0, +1.0]"
    learnt: Section = next(s for s in report.sections if s.title.endswith("beside what was learnt from"))
    assert learnt.columns[:3] == ("", "synthetic", "training")
    assert learnt.rows[0][:4] == ("edge on", "50", "900", "+1.0% [-1.0, +3.0]")


def test_a_figure_without_a_number_is_a_dash(report: Report) -> None:
    section: Section = next(s for s in report.sections if s.title == "Realism and diversity")
    assert section.rows[0][2] == "–"
