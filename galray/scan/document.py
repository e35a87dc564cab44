"""A short report as Markdown and as one self-contained HTML page: headings, paragraphs, tables, figures."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined

_TEMPLATES = Environment(
    loader=PackageLoader("galray", "scan"),
    autoescape=lambda name: bool(name and ".html" in name),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


@dataclass(frozen=True)
class Figure:
    """A PNG with the name of its file, and what it shows, for who cannot see it."""

    name: str
    png: bytes
    shows: str

    @property
    def base64(self) -> str:
        return base64.b64encode(self.png).decode()


@dataclass(frozen=True)
class Section:
    """A heading, a paragraph, a table, the first of whose rows may be a header, and a figure."""

    heading: str
    text: str = ""
    rows: Sequence[Sequence[str]] = ()
    has_header: bool = False
    figure: Figure | None = None


@dataclass(frozen=True)
class Document:
    """A report.

    Attributes
    ----------
    title, about : str
        The heading, and one line on what the report is about.
    sections : sequence of Section
    note : str
        Stands at the end.
    link : str
        A page beside it, linked from the HTML; empty for none.
    """

    title: str
    about: str
    sections: Sequence[Section]
    note: str
    link: str = ""

    def files(self, stem: str) -> dict[str, bytes]:
        """Return the report's files by name; the HTML needs no other, the Markdown the figures."""
        figures = [section.figure for section in self.sections if section.figure]
        return {
            f"{stem}.md": self.markdown().encode(),
            f"{stem}.html": self.html().encode(),
            **{figure.name: figure.png for figure in figures},
        }

    def markdown(self) -> str:
        return _TEMPLATES.get_template("document.md.j2").render(document=self)

    def html(self) -> str:
        return _TEMPLATES.get_template("document.html.j2").render(document=self)
