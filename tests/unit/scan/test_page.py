import re
from html.parser import HTMLParser

import pyarrow as pa

from galray.core.schema import GRADE_SCHEMA
from galray.scan.page import page

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'{{ 7 * 7 }}"


class Elements(HTMLParser):
    """Collects the start tags of a page with their attributes, and the text of its scripts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.cdata_elem == "script":
            self.scripts.append(data)

    def named(self, name):
        return [attributes for tag, attributes in self.tags if tag == name]


def render(candidates, *, title="Dust lanes", run_id="scan-1", facts=None):
    return page(candidates, title=title, run_id=run_id, facts=facts)


def test_page_shows_every_candidate_with_its_id_as_text(candidates):
    cards = [a for a in Elements(render(candidates)).named("li") if a.get("class") == "card"]
    assert [a["data-id"] for a in cards] == [str(i) for i in candidates["galaxy_id"].to_pylist()]
    assert cards[0]["data-flags"] == "edge bad_pixels"
    assert cards[1]["data-key-ra"] == ""


def test_page_asks_the_network_for_nothing(candidates):
    elements = Elements(render(candidates))
    assert not elements.named("link")
    assert not any("src" in attributes for attributes in elements.named("script"))
    assert all(str(a["src"]).startswith("data:image/jpeg;base64,") for a in elements.named("img"))
    assert len(elements.named("img")) == 4
    assert re.search(r"default-src 'none'; img-src data:;", render(candidates))


def test_links_leave_only_for_known_positions(candidates):
    links = [str(a["href"]) for a in Elements(render(candidates)).named("a")]
    assert len(links) == 3 * 4
    assert all(href.startswith("https://") for href in links)


def test_hostile_strings_are_text(candidates):
    tile = pa.array([HOSTILE] * candidates.num_rows)
    index = candidates.schema.get_field_index("tile")
    hostile = candidates.set_column(index, candidates.schema.field("tile"), tile)
    facts = {HOSTILE: HOSTILE}
    page_of_hostile = render(hostile, title=HOSTILE, run_id=HOSTILE, facts=facts)
    plain, elements = Elements(render(candidates)), Elements(page_of_hostile)
    assert elements.scripts == plain.scripts
    assert len(elements.named("img")) == len(plain.named("img"))
    assert not any("onerror" in attributes for _, attributes in elements.tags)
    assert "{{ 7 * 7 }}" in page_of_hostile


def test_export_has_the_columns_of_the_grade_schema(candidates):
    script = "".join(Elements(render(candidates)).scripts)
    columns = re.search(r"const COLUMNS = \[(.*?)\]", script)
    assert columns is not None
    assert re.findall(r'"(\w+)"', columns[1]) == GRADE_SCHEMA.names


def test_page_of_no_candidates_says_so(candidates):
    assert "No source of this scan reached the threshold." in render(candidates.slice(0, 0))
