from __future__ import annotations

import copy
import json

import pytest

from agentkit.errors import OutputError
from agentkit.report import build_report, to_html, to_json, to_markdown, verify
from agentkit.report.build import quotes_in

from .conftest import TEXT, document_of

QUOTE = {"quote", "start", "end"}


def test_the_json_has_exactly_the_promised_shape(outputs, document, run):
    data = json.loads(to_json(build_report(outputs, document, run)))

    assert set(data) == {
        *("document", "facts", "clauses", "reviews", "findings", "run"),
        *("warnings", "routes", "sources"),
    }
    assert data["document"] == {
        "source": "supply.md",
        "digest": document.digest,
        "characters": len(TEXT),
    }
    assert set(data["facts"][0]) == {"name", "value", "start", "end", "score"}
    assert set(data["clauses"][0]) == {"category", "score"} | QUOTE
    review = data["reviews"][0]
    assert set(review) == {"rule", "verdict", "score", "evidence", "context", "route"}
    assert set(review["evidence"][0]) == QUOTE
    assert set(review["context"][0]) == {"chunk", "start", "end", "score"}
    assert set(review["route"]) == {"skill", "score", "abstained"}
    assert set(data["findings"][0]) == {"statement", "rating", "severity", "about"}
    assert [finding["about"] for finding in data["findings"]] == [{"clause": 1}, {"review": 2}]
    named = {"id", "workflow", "backbone", "encoder", "skills"}
    assert set(data["run"]) == named | {"seconds", "tokens"}
    assert data["run"]["tokens"] == {"prompt": 900, "completion": 30, "cached": 600}
    assert data["warnings"] == ["tracked changes were accepted"]


def test_a_part_that_no_skill_gave_is_empty_and_not_filled(outputs, document, run):
    report = build_report({"facts": outputs["facts"], "clauses": None}, document, run)

    data = report.as_json()
    assert data["clauses"] == data["reviews"] == data["findings"] == []
    assert len(data["facts"]) == 1
    assert "tasks" not in data


def test_every_form_of_the_report_says_what_answered_and_what_routed(outputs, document, run):
    report = build_report(outputs, document, run)
    assert "- backbone: `tiny`\n- encoder: `words`\n" in to_markdown(report)
    page = to_html(report, document)
    assert "<dt>Backbone</dt><dd>tiny</dd>" in page
    assert '<dt>Encoder</dt><dd class="mono">words</dd>' in page


def test_warnings_of_the_document_and_of_the_run_are_both_kept(outputs, document, run):
    report = build_report(outputs, document, run | {"warnings": ["check 3: no answer"]})

    assert report.warnings == ("tracked changes were accepted", "check 3: no answer")


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda o: o["clauses"][1].update(quote="Norwegian law rules."), "clauses[1]"),
        (lambda o: o["clauses"][0].update(start=o["clauses"][0]["start"] + 1), "clauses[0]"),
        (lambda o: o["clauses"][0].update(quote="", end=o["clauses"][0]["start"]), "clauses[0]"),
        (lambda o: o["facts"][0].update(end=10**9), "facts[0]"),
        (lambda o: o["reviews"][0]["evidence"][0].update(quote="x"), "reviews[0].evidence[0]"),
    ],
)
def test_a_quote_that_is_not_the_documents_words_is_refused(outputs, document, run, change, where):
    change(outputs)

    with pytest.raises(OutputError) as caught:
        build_report(outputs, document, run)
    assert caught.value.where == where


def test_quotes_within_the_output_of_a_task_are_held_against_the_document(document, run, at):
    route = {"skill": None, "score": 0.1, "abstained": True}
    output = {"found": [{"deep": at("Ostrelle GmbH")}, {"deep": at("Norwegian law")}]}
    good = {"tasks": [{"task": "Find it.", "route": route, "output": output}]}
    bad = copy.deepcopy(good)
    bad["tasks"][0]["output"]["found"][1]["deep"]["quote"] = "Swedish law"

    assert build_report(good, document, run).as_json()["tasks"][0]["output"] == output
    with pytest.raises(OutputError, match=r"tasks\[0\]\.output\.found\[1\]\.deep"):
        build_report(bad, document, run)


def test_a_quote_of_a_standing_index_is_not_looked_for_in_the_document(document, run):
    route = {"skill": None, "score": 0.1, "abstained": True}
    quote = {"quote": "Be quick.", "start": 0, "end": 9, "document": "a" * 64}
    found = {"tasks": [{"task": "Find it.", "route": route, "output": {"why": quote}}]}
    report = build_report(found, document, run)
    assert report.as_json()["tasks"][0]["output"] == {"why": quote}
    assert list(quotes_in({"why": quote})) == []
    assert "“Be quick.” (of a standing index)" in to_markdown(report)
    unnamed = {"tasks": [{"task": "Find it.", "route": route, "output": quote | {"document": "x"}}]}
    with pytest.raises(OutputError, match="not the document's text"):
        build_report(unnamed, document, run)


def test_evidence_of_a_standing_index_is_no_evidence_in_the_document(outputs, document, run):
    own = list(outputs["reviews"][0]["evidence"])
    policy = {"quote": "Be quick.", "start": 0, "end": 9, "score": 0.9, "document": "a" * 64}
    outputs["reviews"][0]["evidence"] = [policy, *own]
    report = build_report(outputs, document, run)
    assert [one.quote for one in report.reviews[0].evidence] == [one["quote"] for one in own]


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda o: o["reviews"][1].update(verdict="maybe"), "reviews[1].verdict"),
        (lambda o: o["reviews"][1].update(score=float("nan")), "reviews[1].score"),
        (lambda o: o["clauses"][1].pop("category"), "clauses[1].category"),
        (lambda o: o["findings"][0].update(rating="awful"), "findings[0].rating"),
        (lambda o: o["findings"][0].update(about={"clause": 0, "review": 0}), "findings[0].about"),
        (lambda o: o["findings"][0].update(about={}), "findings[0].about"),
        (lambda o: o["findings"][0].update(about={"clause": 2}), "findings[0]"),
        (lambda o: o["findings"][0].update(about={"clause": -1}), "findings[0]"),
        (lambda o: o["clauses"].append("free text"), "clauses[2]"),
        (lambda o: o.update(reviews={"0": {}}), "reviews"),
        (lambda o: o.update(facts="none"), "facts"),
    ],
)
def test_an_output_of_another_shape_is_named_by_its_place(outputs, document, run, change, where):
    change(outputs)

    with pytest.raises(OutputError) as caught:
        build_report(outputs, document, run)
    assert caught.value.where == where


def test_findings_follow_their_items_when_an_item_before_them_gave_nothing(outputs, document, run):
    outputs["clauses"].insert(0, None)
    outputs["findings"][0]["about"] = {"clause": 2}

    report = build_report(outputs, document, run)

    assert len(report.clauses) == 2
    assert report.clauses[report.findings[0].about.clause].category == "Law"


def test_a_finding_about_an_item_that_gave_nothing_is_refused(outputs, document, run):
    outputs["reviews"][2] = None

    with pytest.raises(OutputError, match=r"findings\[1\].*review 2"):
        build_report(outputs, document, run)


def test_a_report_is_refused_for_another_document(outputs, document, run):
    report = build_report(outputs, document, run)

    with pytest.raises(OutputError, match="another document"):
        verify(report, document_of(TEXT + " "))


def test_broken_must_rules_come_first_in_the_reading_order(outputs, document, run):
    report = build_report(outputs, document, run)

    assert report.reviews_by_weight() == [2, 1, 0]
    assert report.findings_by_weight() == [1, 0]


def test_a_severity_that_the_review_does_not_carry_comes_from_its_finding(outputs, document, run):
    for review in outputs["reviews"]:
        del review["severity"]

    report = build_report(outputs, document, run)

    assert [report.severity_of(index) for index in range(3)] == [None, None, "must"]


def test_who_gave_a_part_is_known_only_where_the_run_says_so(outputs, document, run):
    report = build_report(outputs, document, run)

    assert report.skills_of("clauses") == (("clause-finder", "cd" * 32),)
    assert report.skills_of("facts") == ()


def test_a_chunk_of_another_file_says_which(outputs, document, run):
    shown = outputs["reviews"][0]["context"]
    own = {**shown[0], "source": "supply.md"}
    other = {**shown[0], "source": "handbook.md"}
    outputs["reviews"][0]["context"] = [own, other]
    context = build_report(outputs, document, run).as_json()["reviews"][0]["context"]
    assert [piece.get("source") for piece in context] == [None, "handbook.md"]
