from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser

import pytest

from agentkit.report import build_report, to_html
from agentkit.types import Section

from .conftest import TEXT, document_of

SVG = '<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'


class Page(HTMLParser):
    """A page's elements, ids, links and text."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.pane = ""
        self.summary = ""
        self._in_pane = self._skip = False
        self.feed(source)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if dict(attrs).get("id") == "text":
            self._in_pane = True
        self._skip = tag in ("script", "style")

    def handle_endtag(self, tag):
        if tag == "div":
            self._in_pane = False
        self._skip = False

    def handle_data(self, data):
        if self._in_pane:
            self.pane += data
        elif not self._skip:
            self.summary += data

    def values(self, attribute: str) -> list[str]:
        return [attrs[attribute] or "" for _, attrs in self.elements if attribute in attrs]


@pytest.fixture
def page(outputs, document, run):
    source = to_html(build_report(outputs, document, run), document, graph_svg=SVG)
    return Page(source)


def test_the_pane_holds_the_document_character_for_character(page):
    assert page.pane == TEXT


def test_nothing_is_fetched_and_the_policy_forbids_it(page):
    for attribute in ("src", "href", "action", "data", "srcset"):
        for value in page.values(attribute):
            assert value.startswith(("#", "data:image/svg+xml;base64,"))
    assert "link" not in {tag for tag, _ in page.elements}
    policy = next(
        attrs["content"]
        for tag, attrs in page.elements
        if tag == "meta" and attrs.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none'")
    assert "connect-src" not in policy


def test_the_policy_allows_exactly_the_script_of_the_page(outputs, document, run):
    source = to_html(build_report(outputs, document, run), document)

    (script,) = re.findall(r"<script>(.*?)</script>", source, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in source


def test_every_link_leads_to_something_and_no_id_occurs_twice(page):
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    links = {value.removeprefix("#") for value in page.values("href") if value.startswith("#")}
    assert links <= set(ids)


def test_every_quote_on_the_left_links_to_its_place(page, outputs):
    links = [attrs["href"] for _, attrs in page.elements if attrs.get("class") == "quote"]
    evidence = [piece for review in outputs["reviews"] for piece in review["evidence"]]
    assert len(links) == len(outputs["facts"]) + len(outputs["clauses"]) + len(evidence)


def test_verdicts_severities_routes_and_digests_are_shown(page):
    for words in ("Contradicted", "must", "rule-checker", "abababababab", "clause-finder"):
        assert words in page.summary
    rows = [value for value in page.values("id") if value.startswith("review-")]
    assert rows == ["review-2", "review-1", "review-0"]


def test_the_graph_is_an_image_in_which_nothing_can_run(page):
    (image,) = (attrs for tag, attrs in page.elements if tag == "img")
    encoded = (image["src"] or "").removeprefix("data:image/svg+xml;base64,")
    assert base64.b64decode(encoded).decode() == SVG
    assert sum(tag == "script" for tag, _ in page.elements) == 1


HOSTILE = (
    "</div><script>alert(1)</script>\n"
    '"><img src=x onerror=alert(1)> [click](javascript:alert(1)) {{ 7 * 7 }} &lt;b&gt;\n'
    "</style></title>"
)


def test_hostile_words_stay_words_everywhere(run):
    document = document_of(f"Before. {HOSTILE} After.", source=f"{HOSTILE}.txt")
    start = document.text.index(HOSTILE)
    quote = {"quote": HOSTILE, "start": start, "end": start + len(HOSTILE)}
    route = {"skill": HOSTILE, "score": 0.5, "abstained": True}
    outputs = {
        "facts": [{"name": HOSTILE, "value": HOSTILE, "score": 1} | quote],
        "clauses": [{"category": HOSTILE, "score": 1} | quote],
        "reviews": [
            {
                "rule": HOSTILE,
                "verdict": "entailed",
                "score": 1,
                "evidence": [quote],
                "context": [{"chunk": HOSTILE, "start": 0, "end": 1, "score": 1}],
                "route": route,
            }
        ],
        "findings": [{"statement": HOSTILE, "rating": "good", "about": {"clause": 0}}],
        "tasks": [
            {"task": HOSTILE, "route": route, "output": {HOSTILE: HOSTILE, "found": [quote]}},
            {"task": HOSTILE, "route": route, "output": HOSTILE},
        ],
    }
    run |= {
        "id": HOSTILE,
        "workflow": HOSTILE,
        "backbone": HOSTILE,
        "encoder": HOSTILE,
        "skills": {HOSTILE: HOSTILE},
        "seconds": {HOSTILE: 1.0},
        "routes": [
            {"step": HOSTILE, "skill": HOSTILE, "digest": HOSTILE, "score": 1, "abstained": True}
            | {"reason": HOSTILE, "scores": {HOSTILE: 1.0}}
        ],
        "sources": {"clauses": [HOSTILE]},
        "notes": {},
        "warnings": [HOSTILE],
    }

    page = Page(to_html(build_report(outputs, document, run), document))

    assert page.pane == document.text
    tags = [tag for tag, _ in page.elements]
    assert tags.count("script") == 1
    assert tags.count("style") == tags.count("title") == 1
    assert "img" not in tags
    assert not [name for _, attrs in page.elements for name in attrs if name.startswith("on")]
    assert all(link.startswith("#") for link in page.values("href"))


def test_a_missing_part_gives_its_reason_only_if_the_run_knows_it(document, run):
    notes = {"clauses": "the skill clause-finder was not available"}
    told = to_html(build_report({}, document, run | {"notes": notes}), document)
    untold = to_html(build_report({}, document, run), document)

    assert "No clauses: the skill clause-finder was not available" in told
    assert "not available" not in untold
    assert "No clause was found." in untold


def test_a_list_of_tasks_has_no_empty_tables_of_other_parts(document, run, at):
    task = {
        "task": "Find the law.",
        "route": {"skill": "clause-finder", "score": 0.7, "abstained": False},
        "output": {"law": at("Norwegian law")},
    }
    page = Page(to_html(build_report({"tasks": [task]}, document, run), document))

    assert "tasks" in page.values("id")
    assert not {"reviews", "findings", "facts", "clauses"} & set(page.values("id"))


def test_headings_pages_and_chunks_that_were_shown_have_their_marks(outputs, run):
    price = TEXT.index("1. Price")
    document = document_of(
        TEXT,
        sections=(Section(0, price, ()), Section(price, len(TEXT), ("1. Price",))),
        pages=(0, price),
    )
    outputs["reviews"][0]["context"][0]["chunk"] = f"{document.digest[:12]}:0-40"

    source = to_html(build_report(outputs, document, run), document)

    assert "<b>1. Price</b>" in source
    assert '<i class="page" data-page="2"></i>' in source
    assert '<a class="at" id="o0"></a>' in source
    assert Page(source).pane == TEXT


def test_an_empty_report_of_an_empty_document_is_still_a_page(run):
    document = document_of("")
    page = Page(
        to_html(build_report({}, document, {"id": "1", "workflow": "w", "backbone": "b"}), document)
    )

    assert page.pane == ""
    assert "No rule was reviewed." in page.summary
