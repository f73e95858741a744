"""Loaders of public data sets, on files of the same form with texts of our own."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from agentkit.errors import InputError
from agentkit.training.datasets import LICENSES, dataset_files, load_dataset
from agentkit.training.jsonl import read_jsonl

NDA = "Ann keeps it secret. Bob may tell his advisers. It ends in May."
SPANS = [[0, 20], [21, 47], [48, 63]]


def write(path: Path, rows: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


@pytest.fixture
def nli(tmp_path: Path) -> Path:
    base = tmp_path / "contract_nli"
    base.mkdir()
    (base / "hypotheses.json").write_text(
        json.dumps({"h1": {"hypothesis": "It is secret."}, "h2": {"hypothesis": "It is open."}})
    )
    annotations = {
        "h1": {"choice": "Entailment", "spans": [0]},
        "h2": {"choice": "NotMentioned", "spans": []},
    }
    write(
        base / "dev.jsonl.gz",
        [{"id": 7, "text": NDA, "spans": SPANS, "annotations": annotations}],
    )
    row = {
        "doc": 0,
        "hypothesis_id": "h1",
        "label": "Entailment",
        "evidence": "Keep it secret.\nTell no one.",
        "random_spans": "It ends in May.",
    }
    other = row | {
        "hypothesis_id": "h2",
        "label": "Contradiction",
        "evidence": "Tell no one.",
        "random_spans": "Signed in Oslo.\nIt ends in May.",
    }
    write(base / "train_evidence.jsonl.gz", [row, other, row | {"doc": 1}])
    return tmp_path


def test_whole_documents_keep_their_evidence_offsets(nli: Path) -> None:
    first, second = load_dataset("contract_nli", nli, split="dev")
    assert first["hypothesis"] == "It is secret."
    (place,) = first["evidence"]
    assert NDA[place["start"] : place["end"]] == "Ann keeps it secret."
    assert first["quote"] == "Ann keeps it secret."
    assert (second["label"], second["evidence"], second["quote"]) == ("NotMentioned", [], "")
    assert first["group"] == second["group"]


def test_evidence_documents_hold_each_span_once_with_its_place(nli: Path) -> None:
    rows = load_dataset("contract_nli", nli, split="train_evidence")
    assert len(rows) == 3
    text = rows[0]["document"]
    assert rows[1]["document"] == text
    assert sorted(text.split("\n\n")) == [
        "It ends in May.",
        "Keep it secret.",
        "Signed in Oslo.",
        "Tell no one.",
    ]
    said = [text[p["start"] : p["end"]] for p in rows[0]["evidence"]]
    assert said == ["Keep it secret.", "Tell no one."]


def test_the_first_documents_can_be_left_out(nli: Path) -> None:
    rows = load_dataset("contract_nli", nli, split="train_evidence", skip=1)
    assert {row["group"] for row in rows} == {"contract_nli/train/1"}


@pytest.mark.parametrize("split", ["dev", "train_evidence"])
def test_hypotheses_can_be_left_out(nli: Path, split: str) -> None:
    every = {r["hypothesis"] for r in load_dataset("contract_nli", nli, split=split)}
    left = {r["hypothesis"] for r in load_dataset("contract_nli", nli, split=split, without=["h1"])}
    assert every - left == {"It is secret."}


def test_a_negated_wording_turns_the_label_round(nli: Path, tmp_path: Path) -> None:
    worded = tmp_path / "wordings.jsonl"
    write(
        worded,
        [
            {"hypothesis": "h1", "text": "It is no secret.", "negated": True},
            {"hypothesis": "h2", "text": "All may read it.", "negated": False},
        ],
    )
    first, second = load_dataset(
        "contract_nli", nli, split="dev", variants=str(worded), variant_share=1.0
    )
    assert (first["hypothesis"], first["label"]) == ("It is no secret.", "Contradiction")
    assert (second["hypothesis"], second["label"]) == ("All may read it.", "NotMentioned")


@pytest.mark.parametrize("split", ["dev", "train_evidence"])
def test_each_hypothesis_is_asked_in_its_own_words_and_in_others(
    nli: Path, tmp_path: Path, split: str
) -> None:
    worded = tmp_path / "wordings.jsonl"
    texts = [("It is no secret.", True), ("Nobody is told.", False), ("Hush.", False)]
    write(worded, [{"hypothesis": "h1", "text": t, "negated": no} for t, no in texts])
    rows = load_dataset("contract_nli", nli, split=split, variants=str(worded), variants_each=2)
    asked = [row for row in rows if row["group"].endswith(("/7", "/0"))]
    known = {"It is secret.": "Entailment"} | {
        text: "Contradiction" if no else "Entailment" for text, no in texts
    }
    of_one = [row for row in asked if row["hypothesis"] in known]
    assert next(row["hypothesis"] for row in of_one) == "It is secret."
    assert len({row["hypothesis"] for row in of_one}) == len(of_one) == 3
    assert all(row["label"] == known[row["hypothesis"]] for row in of_one)
    assert all(row["evidence"] == of_one[0]["evidence"] for row in of_one)
    assert len(asked) == 4  # the other has no wordings


def test_the_same_seed_gives_the_same_rows(nli: Path) -> None:
    first, again = (load_dataset("contract_nli", nli, seed=3) for _ in range(2))
    assert first == again


CONTRACT = "THIS DEED.\n\nAnn  shall pay\nBob on Monday.\fThe law\nof Norway governs it."


@pytest.fixture
def contracts(tmp_path: Path) -> Path:
    labels = {
        "Payment": {"clauses": ["Ann shall pay Bob on Monday."], "answer": "Yes"},
        "Law": {
            "clauses": ["THE LAW OF NORWAY governs", "words that stand nowhere at all"],
            "answer": "Norway",
        },
        "Gap": {"clauses": ["Ann shall pay<omitted>governs it."], "answer": "Yes"},
    }
    write(
        tmp_path / "cuad" / "contracts.jsonl.gz",
        [{"title": "ACME_01_01_EX-1", "text": CONTRACT, "labels": labels}],
    )
    return tmp_path


def test_clauses_are_found_where_white_space_and_case_differ(contracts: Path) -> None:
    (record,) = load_dataset("cuad", contracts)
    found = {
        label["category"]: record["document"][label["start"] : label["end"]]
        for label in record["labels"]
    }
    assert found == {
        "Payment": "Ann  shall pay\nBob on Monday.",
        "Law": "The law\nof Norway governs",
        "Gap": "Ann  shall pay\nBob on Monday.\fThe law\nof Norway governs it.",
    }
    assert record["group"] == "cuad/acme"


def test_single_clauses_are_few_of_each_category(contracts: Path) -> None:
    records = load_dataset("cuad_clauses", contracts, each=1)
    assert sorted(r["category"] for r in records) == ["Gap", "Law", "Payment"]
    assert all("statement" not in r for r in records)


def test_single_clauses_get_a_statement_about_their_category(
    contracts: Path, tmp_path: Path
) -> None:
    said = tmp_path / "statements.jsonl"
    write(said, [{"category": "Payment", "statement": "You are paid.", "rating": "good"}])
    records = load_dataset("cuad_clauses", contracts, statements=str(said))
    rated = {r["category"]: r.get("rating") for r in records}
    assert rated == {"Gap": None, "Law": None, "Payment": "good"}


@pytest.fixture
def terms(tmp_path: Path) -> Path:
    rows = [
        {
            "quote": f"<p>We keep   your data for {n} years and more.</p>",
            "case": f"Data is kept {n} years ",
            "rating": "bad",
            "services": [f"service {n // 4}"],
        }
        for n in range(12)
    ]
    rows.append({"quote": "short", "case": "Too short", "rating": "good", "services": []})
    write(tmp_path / "tosdr" / "clauses.jsonl.gz", rows)
    return tmp_path


def test_quotes_are_plain_text_with_their_statement(terms: Path) -> None:
    rows = load_dataset("tosdr", terms)
    assert len(rows) == 12
    assert rows[0]["quote"] == "We keep your data for 0 years and more."
    assert rows[0]["statement"] == "Data is kept 0 years"


def test_statements_have_the_topics_that_a_file_names(terms: Path, tmp_path: Path) -> None:
    said = {f"Data is kept {n} years": f"kept {n}" for n in range(12)}
    named = [
        {"statement": hashlib.sha256(text.encode()).hexdigest()[:12], "topic": topic}
        for text, topic in said.items()
    ]
    topics = tmp_path / "topics.jsonl"
    topics.write_text("".join(json.dumps(row) + "\n" for row in named))
    rows = load_dataset("tosdr", terms, topics=str(topics))
    assert len(rows) == 12
    assert all(row["topic"] == said[row["statement"]] for row in rows)
    topics.write_text("".join(json.dumps(row) + "\n" for row in named[1:]))
    with pytest.raises(InputError, match="no topic for the statement 'Data is kept 0 years'"):
        load_dataset("tosdr", terms, topics=str(topics))


def test_pages_ask_for_what_they_say_and_for_what_they_do_not(terms: Path) -> None:
    rows = load_dataset("tosdr_pages", terms, clauses=4, absent=2)
    pages = {row["group"] for row in rows}
    assert len(pages) == 3
    for row in rows:
        words = row["hypothesis"].split()[-2]
        said = [row["document"][p["start"] : p["end"]] for p in row["evidence"]]
        if row["label"] == "Entailment":
            assert said
            assert all(f" {words} years" in quote for quote in said)
        else:
            assert row["label"] == "NotMentioned"
            assert said == []
            assert f" {words} years" not in row["document"]
    assert sum(row["label"] == "NotMentioned" for row in rows) == 6


def test_summaries_come_with_their_originals(tmp_path: Path) -> None:
    write(
        tmp_path / "plain_english" / "tldrlegal.jsonl.gz",
        [
            {"doc": 1, "original": "Long words.", "summary": "You may copy it."},
            {"doc": 1, "original": "Long words.", "summary": "Short"},
        ],
    )
    (row,) = load_dataset("tldrlegal", tmp_path)
    assert row["summary"] == "You may copy it."


def test_every_data_set_names_its_licence_and_files(nli: Path, contracts: Path) -> None:
    with pytest.raises(InputError) as raised:
        load_dataset("unknown", nli)
    assert all(name in str(raised.value) for name in LICENSES)
    names = [path.name for path in dataset_files("contract_nli", nli)]
    assert names == ["dev.jsonl.gz", "hypotheses.json", "train_evidence.jsonl.gz"]
    assert [p.name for p in dataset_files("cuad_clauses", contracts)] == ["contracts.jsonl.gz"]


def test_a_missing_data_set_says_how_to_give_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data set 'cuad' is not there .*--data-dir"):
        load_dataset("cuad", tmp_path)


def test_an_unknown_option_is_named(nli: Path) -> None:
    with pytest.raises(InputError, match=r"options of data set 'contract_nli': .*'colour'"):
        load_dataset("contract_nli", nli, colour="red")


def test_a_record_of_another_form_is_an_input_error(tmp_path: Path) -> None:
    write(tmp_path / "cuad" / "contracts.jsonl.gz", [{"title": "x"}])
    with pytest.raises(InputError, match="a record of data set 'cuad' lacks 'text'"):
        load_dataset("cuad", tmp_path)


def test_a_line_that_is_not_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n\n{"a": \n')
    with pytest.raises(InputError, match=r"rows\.jsonl:3:\d+: not valid JSON"):
        list(read_jsonl(path))


def test_rules_about_clauses_point_at_them(contracts: Path, tmp_path: Path) -> None:
    rules = tmp_path / "rules.jsonl"
    write(
        rules,
        [
            {"category": "Payment", "text": "Something is paid.", "negated": False},
            {"category": "Payment", "text": "Nothing is paid.", "negated": True},
            {"category": "Audit", "text": "Books may be seen.", "negated": False},
        ],
    )
    whole = load_dataset("cuad_rules", contracts, rules=str(rules), whole=True)
    asked = {r["hypothesis"]: (r["label"], r["opposite"], r["evidence"]) for r in whole}
    start = CONTRACT.index("Ann")
    assert asked == {
        "Something is paid.": (
            "Entailment",
            "Nothing is paid.",
            [{"start": start, "end": CONTRACT.index("\f")}],
        ),
        "Books may be seen.": ("NotMentioned", None, []),
    }
    options = {"rules": str(rules), "whole": True, "opposites": True}
    every = load_dataset("cuad_rules", contracts, longest=len(CONTRACT), **options)
    opposite = next(r for r in every if r["hypothesis"] == "Nothing is paid.")
    assert len(every) == 3
    assert (opposite["label"], opposite["opposite"]) == ("Contradiction", None)
    assert opposite["evidence"][0]["start"] == start
    assert not load_dataset("cuad_rules", contracts, longest=len(CONTRACT) - 1, **options)
    for record in load_dataset("cuad_rules", contracts, rules=str(rules)):
        said = [record["document"][e["start"] : e["end"]] for e in record["evidence"]]
        assert said == (["Ann  shall pay\nBob on Monday."] if record["evidence"] else [])


def test_clauses_that_nobody_labelled_are_found_by_their_words(tmp_path: Path) -> None:
    clause = "Any dispute between Ann and Bob shall be settled by arbitration in the town of Acme."
    texts = {
        "ACME_01": f"Arbitration\n\n{clause}\n\nThe end of the matter is reached here.",
        "BETA_01": "Bob may ask the arbitrator for advice.",
        "CETO_01": "Nothing of the kind is said in here.",
    }
    write(
        tmp_path / "cuad" / "contracts.jsonl.gz",
        [{"title": title, "text": text, "labels": {}} for title, text in texts.items()],
    )
    rules, patterns = tmp_path / "rules.jsonl", tmp_path / "patterns.jsonl"
    write(
        rules,
        [
            {"category": "Tribunal", "text": "A private court decides.", "negated": False},
            {"category": "Tribunal", "text": "No private court decides.", "negated": True},
        ],
    )
    write(
        patterns,
        [{"category": "Tribunal", "sentence": r"settled\b.*\barbitration", "anywhere": "arbitra"}],
    )
    records = load_dataset(
        "cuad_rules", tmp_path, rules=str(rules), patterns=str(patterns), whole=True
    )
    start = texts["ACME_01"].index(clause)
    # A word of it somewhere is neither a clause nor the lack of one.
    assert [(r["group"], r["label"], r["opposite"], r["evidence"]) for r in records] == [
        (
            "cuad/acme",
            "Entailment",
            "No private court decides.",
            [{"start": start, "end": start + len(clause)}],
        ),
        ("cuad/ceto", "NotMentioned", None, []),
    ]


@pytest.mark.parametrize(
    "row",
    [
        {"category": "Tribunal", "sentence": "arbitration"},
        {"category": "Tribunal", "sentence": "(", "anywhere": "arbitra"},
    ],
)
def test_a_pattern_that_is_none_says_its_line(
    contracts: Path, tmp_path: Path, row: dict[str, str]
) -> None:
    rules, patterns = tmp_path / "rules.jsonl", tmp_path / "patterns.jsonl"
    write(rules, [{"category": "Payment", "text": "Something is paid.", "negated": False}])
    write(patterns, [row])
    with pytest.raises(InputError, match=r"patterns\.jsonl:1"):
        load_dataset("cuad_rules", contracts, rules=str(rules), patterns=str(patterns))


def test_sentences_are_asked_what_they_say_and_what_they_deny(tmp_path: Path) -> None:
    texts = {
        "ACME_01": "The Supplier shall deliver the goods to the port. It is cold.\n\nThe end.",
        "BETA_01": "The Tenant may not sublet any of the rooms. No pets.\n\nSigned here.",
    }
    write(
        tmp_path / "cuad" / "contracts.jsonl.gz",
        [{"title": title, "text": text, "labels": {}} for title, text in texts.items()],
    )
    records = load_dataset("cuad_sentences", tmp_path, decided=3, absent=1)
    for record in records:
        assert record["group"] in ("cuad/acme", "cuad/beta")
        own = "Supplier" if record["group"] == "cuad/acme" else "Tenant"
        said = [record["document"][e["start"] : e["end"]] for e in record["evidence"]]
        assert (own in record["hypothesis"]) == bool(said) == (record["label"] != "NotMentioned")
        assert all(sentence.startswith(f"The {own} ") for sentence in said)
        assert "The end" not in record["document"]  # two sentences on: it stands apart
    assert {r["label"] for r in records} == {"Entailment", "Contradiction", "NotMentioned"}


def test_what_is_asked_of_a_contract_comes_from_its_own_part(tmp_path: Path) -> None:
    parties = ("Supplier", "Tenant", "Agent", "Carrier")
    places = ("Texas", "Utah", "Iowa", "Ohio")
    write(
        tmp_path / "cuad" / "contracts.jsonl.gz",
        [
            {
                "title": f"{party.upper()}_01",
                "text": f"The {party} shall obey the laws of {place}. It is cold there.",
                "labels": {
                    "Law": {"clauses": [f"obey the laws of {place}"], "answer": place},
                },
            }
            for party, place in zip(parties, places, strict=True)
        ],
    )
    rules = tmp_path / "rules.jsonl"
    texts = {False: "The law is that of {answer}.", True: "The law is that of {other}."}
    write(rules, [{"category": "Law", "text": t, "negated": n} for n, t in texts.items()])

    def part_of(group: str) -> str:
        return "train" if group in ("cuad/supplier", "cuad/tenant") else "holdout"

    for name, options, words in (
        ("cuad_sentences", {"absent": 8}, parties),
        ("cuad_rules", {"rules": str(rules), "whole": True}, places),
    ):
        records = load_dataset(name, tmp_path, part_of=part_of, **options)
        asked: dict[str, set[str]] = {"train": set(), "holdout": set()}
        for record in records:
            said = f"{record['hypothesis']} {record.get('opposite')}"
            asked[part_of(record["group"])] |= {word for word in words if word in said}
        assert asked == {"train": {*words[:2]}, "holdout": {*words[2:]}}


def test_rules_of_some_categories_are_left_out(contracts: Path, tmp_path: Path) -> None:
    rules = tmp_path / "rules.jsonl"
    names = ("Law", "Payment")
    write(rules, [{"category": n, "text": f"{n} stands.", "negated": False} for n in names])
    records = load_dataset("cuad_rules", contracts, rules=str(rules), without=["Payment"])
    assert {record["category"] for record in records} == {"Law"}


def test_sentences_without_conditions_are_restated(tmp_path: Path) -> None:
    text = (
        "(a) The Supplier shall deliver the goods to the port. It is cold.\n\n"
        "The Supplier may refuse any later orders, unless they are paid."
    )
    write(
        tmp_path / "cuad" / "contracts.jsonl.gz",
        [{"title": "ACME_01", "text": text, "labels": {}}],
    )
    (record,) = load_dataset("cuad_restated", tmp_path, each=3)
    assert record["group"] == "cuad/acme"
    assert record["quote"] == "(a) The Supplier shall deliver the goods to the port. It is cold."
    assert record["statement"] == "The Supplier shall deliver the goods to the port."
