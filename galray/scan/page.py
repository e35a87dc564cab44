"""The candidate page: one HTML file in which an astronomer grades candidates, offline."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from astropy.coordinates import Angle
from jinja2 import Environment, PackageLoader, StrictUndefined

from galray.core.schema import CUTOUT_FLAGS, uniform_of
from galray.scan.candidates import flag_names

_PAGES = Environment(
    loader=PackageLoader("galray", "scan"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
)
_PNG_SIGNATURE = b"\x89PNG"
_MIXED_STREAM = 2  # of `schema.uniform_of`
_LINKS = {"Legacy Survey": "viewer_url", "SDSS": "sdss_url", "Aladin": "aladin_url"}

# What the page can be sorted by: columns of the candidates, and an order that knows nothing of them.
SORTS = {
    "score": "Score",
    "mixed": "Mixed",
    "early_type": "Early type",
    "magnitude": "Magnitude",
    "radius_arcsec": "Radius",
    "known_separation": "Known distance",
    "ra": "RA",
    "dec": "Dec",
    "tile": "Tile",
    "galaxy_id": "ID",
}


def page(
    candidates: pa.Table,
    *,
    title: str,
    run_id: str,
    facts: Mapping[str, str] | None = None,
    match_radius_arcsec: float = 3.0,
) -> str:
    """Render the page on which candidates are looked at and graded.

    Parameters
    ----------
    candidates : pyarrow.Table
        `galray.core.schema.CANDIDATE_SCHEMA`; its cutouts are embedded as they are. Sources of the
        random arm stand among the others and look like them; where there are any, the page opens
        blind: in an order that knows nothing of the scores, and with the scores hidden.
    title : str
        The page's heading.
    run_id : str
        The scan that made the list: the browser keeps grades under it, so that the grades of one
        scan are never shown on another.
    facts : mapping of str to str, optional
        What else the reader should know (survey, model, threshold), shown below the heading.
    match_radius_arcsec : float
        Candidates this near to a known object carry a badge.

    Returns
    -------
    str
        A self-contained HTML document. It holds every style, script and cutout and asks the
        network for nothing; its content security policy forbids both that and any script but
        its own, whatever the catalogue's strings contain. Grades are exported as a CSV file
        with the columns of `galray.core.schema.GRADE_SCHEMA`.
    """
    style, script = _source("page.css"), _source("page.js")
    cards = [_card(row, match_radius_arcsec) for row in candidates.to_pylist()]
    cards.sort(key=lambda card: -card["score"])
    return _PAGES.get_template("page.html.j2").render(
        title=title,
        run_id=run_id,
        facts=dict(facts or {}),
        cards=cards,
        sorts={name: text for name, text in SORTS.items() if any(card["keys"][name] != "" for card in cards)},
        blind=any(card["random_arm"] for card in cards),
        highest=max(candidates["probability"].to_pylist(), default=1.0),
        flag_names=list(CUTOUT_FLAGS),
        style=style,
        style_hash=_hash(style),
        script=script,
        script_hash=_hash(script),
    )


def _source(name: str) -> str:
    assert _PAGES.loader is not None
    return _PAGES.loader.get_source(_PAGES, name)[0]


def _hash(source: str) -> str:
    """Return what a content security policy calls the source's hash."""
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()


def _card(row: Mapping[str, Any], match_radius_arcsec: float) -> dict[str, Any]:
    """Return what the template shows of one candidate; its id as text, which JavaScript keeps exact."""
    separation = row["known_separation"]
    mixed = uniform_of(np.array([row["galaxy_id"]]), _MIXED_STREAM)[0]
    return {
        **row,
        "galaxy_id": str(row["galaxy_id"]),
        "flags": flag_names(row["flags"]),
        "image": None if row["image"] is None else _data_uri(row["image"]),
        "keys": {name: "" if row.get(name) is None else str(row[name]) for name in SORTS} | {"mixed": mixed},
        "is_known": separation is not None and separation <= match_radius_arcsec,
        "sexagesimal": _sexagesimal(row["ra"], row["dec"]) if row["viewer_url"] else None,
        "links": {name: row[column] for name, column in _LINKS.items() if row[column]},
    }


def _data_uri(image: bytes) -> str:
    kind = "png" if image.startswith(_PNG_SIGNATURE) else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


def _sexagesimal(ra_deg: float, dec_deg: float) -> str:
    ra = Angle(ra_deg, "deg").to_string("hourangle", sep=":", precision=2, pad=True)
    dec = Angle(dec_deg, "deg").to_string("deg", sep=":", precision=1, pad=True, alwayssign=True)
    return f"{ra} {dec}"
