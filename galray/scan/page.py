"""The candidate page: one HTML file in which an astronomer grades candidates, offline."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

import pyarrow as pa
from astropy.coordinates import Angle
from jinja2 import Environment, PackageLoader, StrictUndefined

from galray.core.schema import CUTOUT_FLAGS

_PAGES = Environment(
    loader=PackageLoader("galray", "scan"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
)
_PNG_SIGNATURE = b"\x89PNG"
_ALADIN_FIELD_DEG = 0.03


def page(candidates: pa.Table, *, title: str, run_id: str, facts: Mapping[str, str] | None = None) -> str:
    """Render the page on which candidates are looked at and graded.

    Parameters
    ----------
    candidates : pyarrow.Table
        `galray.core.schema.CANDIDATE_SCHEMA`; its cutouts are embedded as they are.
    title : str
        The page's heading.
    run_id : str
        The scan that made the list: the browser keeps grades under it, so that the grades of one
        scan are never shown on another.
    facts : mapping of str to str, optional
        What else the reader should know (survey, model, threshold), shown below the heading.

    Returns
    -------
    str
        A self-contained HTML document. It holds every style, script and cutout and asks the
        network for nothing; its content security policy forbids both that and any script but
        its own, whatever the catalogue's strings contain. Grades are exported as a CSV file
        with the columns of `galray.core.schema.GRADE_SCHEMA`.
    """
    style, script = _source("page.css"), _source("page.js")
    return _PAGES.get_template("page.html.j2").render(
        title=title,
        run_id=run_id,
        facts=dict(facts or {}),
        cards=[_card(row) for row in candidates.to_pylist()],
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


def _card(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the template shows of one candidate; its id as text, which JavaScript keeps exact."""
    has_position = row["viewer_url"] is not None
    return {
        **row,
        "galaxy_id": str(row["galaxy_id"]),
        "flags": [name for name, bit in CUTOUT_FLAGS.items() if row["flags"] & bit],
        "image": None if row["image"] is None else _data_uri(row["image"]),
        "sexagesimal": _sexagesimal(row["ra"], row["dec"]) if has_position else None,
        "links": _links(row) if has_position else {},
    }


def _data_uri(image: bytes) -> str:
    kind = "png" if image.startswith(_PNG_SIGNATURE) else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


def _sexagesimal(ra_deg: float, dec_deg: float) -> str:
    ra = Angle(ra_deg, "deg").to_string("hourangle", sep=":", precision=2, pad=True)
    dec = Angle(dec_deg, "deg").to_string("deg", sep=":", precision=1, pad=True, alwayssign=True)
    return f"{ra} {dec}"


def _links(row: Mapping[str, Any]) -> dict[str, str]:
    """Return the sky viewers at the candidate's position, by name."""
    ra, dec = f"{row['ra']:.6f}", f"{row['dec']:.6f}"
    sdss = urlencode({"ra": ra, "dec": dec, "scale": 0.2, "opt": "G"})
    aladin = urlencode({"target": f"{ra} {dec}", "fov": _ALADIN_FIELD_DEG})
    return {
        "Legacy Survey": row["viewer_url"],
        "SDSS": f"https://skyserver.sdss.org/dr18/VisualTools/navi?{sdss}",
        "Aladin": f"https://aladin.cds.unistra.fr/AladinLite/?{aladin}",
    }
