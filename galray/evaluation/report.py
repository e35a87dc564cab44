"""A report: one list of sections, as Markdown and as an HTML page that needs nothing else."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from jinja2 import Environment, PackageLoader, StrictUndefined

from galray.core.pictures import png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURES = "figures"
_DPI = 160

_TEMPLATES = Environment(
    loader=PackageLoader("galray", "evaluation"),
    autoescape=lambda name: name is not None and ".html" in name,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


@dataclass(frozen=True)
class Picture:
    """A figure of the report: its file name in the folder `FIGURES`, its PNG bytes, and its caption."""

    name: str
    png: bytes
    caption: str

    @classmethod
    def of(cls, name: str, figure: Figure, caption: str) -> Picture:
        """Draw a figure."""
        return cls(name, png(figure, _DPI), caption)

    @property
    def data_uri(self) -> str:
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


@dataclass(frozen=True)
class Section:
    """A heading, what it is about, a table of texts, and figures."""

    title: str
    text: str
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    pictures: Sequence[Picture] = ()


Word = Literal["reached", "missed", "undecided", "not measured"]


@dataclass(frozen=True)
class Verdict:
    """A goal, what was found, and what that says: undecided where the interval reaches over the goal."""

    goal: str
    found: str
    word: Word


@dataclass(frozen=True)
class Report:
    """A report, ready to be rendered."""

    title: str
    facts: Mapping[str, str]
    verdicts: Sequence[Verdict]
    sections: Sequence[Section]

    def html(self) -> str:
        """Return a self-contained HTML document; it asks the network for nothing, and may not."""
        return _TEMPLATES.get_template("report.html.j2").render(report=self)

    def markdown(self) -> str:
        """Return Markdown that shows the figures of the folder `FIGURES` beside it."""
        return _TEMPLATES.get_template("report.md.j2").render(report=self, figures=FIGURES)
