from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from agentkit.report import build_report, to_markdown
from agentkit.report.markdown import code, escape

from .conftest import TEXT, document_of

RENDERER = MarkdownIt("commonmark").enable(["table", "strikethrough"])
NASTY = st.text(
    st.sampled_from(list("\\`*_[]()<>&|~#$!-+.:/@ abw1\n"))
    | st.characters(exclude_categories=["Cc", "Cf", "Cs"])
)


def words(text: str) -> str:
    return " ".join(text.split())


def shown(inline: str) -> tuple[set[str], str]:
    """Kinds of inline tokens in one line of Markdown, and the text that a reader sees."""
    (token,) = (t for t in RENDERER.parse(f"x {inline} x") if t.type == "inline")
    children = token.children or []
    return {child.type for child in children}, "".join(child.content for child in children)


@given(NASTY)
def test_escaped_text_shows_as_it_is_and_is_nothing_but_text(text):
    kinds, seen = shown(escape(text))

    assert kinds <= {"text", "text_special", "code_inline"}
    assert words(seen) == words(f"x {text} x")


@given(NASTY)
def test_code_shows_as_it_is(text):
    kinds, seen = shown(code(text))

    assert kinds <= {"text", "text_special", "code_inline"}
    assert words(seen) == words(f"x {text} x")


@given(st.text(st.characters(categories=["Cc"]) | st.sampled_from("\u202e\u2066ab")))
def test_nothing_in_the_text_drives_the_terminal(text):
    for written in (escape(text), code(text)):
        assert written.isprintable()


@pytest.mark.parametrize(
    "address",
    [
        "https://bad.example/x",
        "www.bad.example",
        "(see http://bad.example)",
        "someone@bad.example",
        "mailto:someone@bad.example",
        "bad.example/path",
        "javascript:alert(1)//x",
        "http://bad.example/|pay",
        "|someone@bad.example|",
    ],
)
def test_words_that_look_like_an_address_are_code(address):
    outside = re.sub(r"`[^`]*`", "", escape(f"go to {address} now"))

    assert "bad" not in outside
    assert "alert" not in outside


@pytest.mark.parametrize(
    "text",
    ["# a", "###### a", "- a", "+ a", "1. a", "12) a", "---", "-", "#", "1.5 a", "-5", "...", "#a"],
)
def test_a_line_is_shown_as_it_is_even_at_the_start_of_an_item(text):
    tokens = RENDERER.parse(f"- {escape(text)}")

    assert [token.type for token in tokens][2:5] == ["paragraph_open", "inline", "paragraph_close"]
    assert "".join(child.content for child in tokens[3].children) == text


def test_hostile_words_are_no_links_or_html_in_the_report(outputs, run):
    hostile = "[a](https://x.example) <script>alert(1)</script> | `b` ![i](j) <https://y.example>"
    document = document_of(f"{TEXT}{hostile}", source=f"{hostile}.pdf")
    start = len(TEXT)
    end = start + len(hostile)
    outputs["facts"] = [{"name": hostile, "value": hostile, "start": start, "end": end, "score": 1}]
    outputs["clauses"][1] = {"category": hostile, "score": 1} | {
        "quote": hostile,
        "start": start,
        "end": end,
    }
    outputs["reviews"][0] |= {"rule": hostile}
    outputs["findings"][0] |= {"statement": hostile}
    run |= {"id": hostile, "workflow": hostile, "skills": {hostile: "ab"}, "warnings": [hostile]}

    text = to_markdown(build_report(outputs, document, run), mermaid="graph LR\n a --> b\n```\n")
    tokens = RENDERER.parse(text)
    inline = [child.type for token in tokens for child in token.children or []]

    assert not {"link_open", "image", "html_inline"} & set(inline)
    assert "html_block" not in {token.type for token in tokens}
    fences = [token for token in tokens if token.type == "fence"]
    assert [fence.info for fence in fences] == ["mermaid"]


def test_broken_must_rules_lead_the_table(outputs, document, run):
    text = to_markdown(build_report(outputs, document, run))

    table = text[text.index("| verdict") :]
    assert table.index("Prices are fixed") < table.index("Deliveries") < table.index("The law of a")
    assert "1 contradicted, 1 not mentioned, 1 entailed" in text


def test_quotes_come_with_their_offsets_and_who_said_it(outputs, document, run):
    text = to_markdown(build_report(outputs, document, run))

    clause = outputs["clauses"][1]
    assert f"“Norwegian law governs this agreement.” (`{clause['start']}:{clause['end']}`" in text
    assert "by `rule-checker` `abababababab`, route 0.80" in text
    assert "By `clause-finder` `cdcdcdcdcdcd`." in text


def test_a_missing_part_gives_its_reason_only_if_the_run_knows_it(document, run):
    notes = {"findings": "the skill explainer was not available"}

    told = to_markdown(build_report({}, document, run | {"notes": notes}))

    assert "No findings: the skill explainer was not available" in told
    assert "not available" not in to_markdown(build_report({}, document, run))


def test_tasks_show_who_took_them_and_what_came_of_it(document, run, at):
    picked = {"skill": "clause-finder", "score": 0.7, "abstained": False}
    nobody = {"skill": None, "score": 0.1, "abstained": True}
    tasks = [
        {"task": "Find the law.", "route": picked, "output": {"law": at("Norwegian law")}},
        {"task": "Sing.", "route": nobody, "output": None},
        {"task": "Rate it.", "route": picked, "output": {"rating": "good"}},
        {"task": "Greet.", "route": nobody, "output": "Hello"},
    ]

    text = to_markdown(build_report({"tasks": tasks}, document, run))

    assert "“Norwegian law”" in text
    assert "abstained: no skill, route 0.10" in text
    assert "- rating: good" in text
    assert "- Hello" in text
    assert "## Verdicts" not in text
