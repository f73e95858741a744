"""Likeness and support of written text, by hand and by law."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentkit.evaluation.texts import facts, rouge_l, unsupported

TEXT = st.lists(st.sampled_from(["cat", "sat", "mat", "the", "on"]), max_size=8).map(" ".join)


def test_rouge_l_of_the_papers_example() -> None:
    # Lin 2004, section 3.1: "police killed the gunman" and two candidates.
    reference = "police killed the gunman"
    assert rouge_l(reference, "police kill the gunman") == pytest.approx(3 / 4)
    assert rouge_l(reference, "the gunman kill police") == pytest.approx(2 / 4)


def test_rouge_l_weighs_precision_and_recall_alike() -> None:
    # Common subsequence 2 of 2 and 5 words: P 1, R .4.
    assert rouge_l("a b c d e", "b, D!") == pytest.approx(2 * 1 * 0.4 / 1.4)


@given(TEXT, TEXT)
def test_rouge_l_is_symmetric_within_0_and_1_and_1_for_the_same_words(one, other) -> None:
    assert rouge_l(one, other) == rouge_l(other, one)
    assert 0 <= rouge_l(one, other) <= 1
    assert rouge_l(one, one.upper() + ".") == 1


@pytest.mark.parametrize(
    ("statement", "found"),
    [
        ("You may cancel within 30 days.", ["30"]),
        ("Acme Ltd pays $1,250.50 to Beta Inc.", ["ltd", "1250.5", "beta inc"]),
        ("It ends on 3 March 2025, or in Dec 2026.", ["3", "march", "2025", "december", "2026"]),
        ("The service keeps your data. You own it.", []),
        ("They may show it to IBM's lawyers.", ["ibm"]),
        ("IBM and NASA agree.", ["ibm", "nasa"]),
        ("", []),
    ],
)
def test_facts_are_numbers_names_and_dates(statement: str, found: list[str]) -> None:
    assert facts(statement) == found


@pytest.mark.parametrize(
    ("statement", "source", "missing"),
    [
        ("You have 30 days.", "within thirty (30) days", []),
        ("You have 21 days.", "within twenty-one days", []),
        ("You have 12 days.", "within twelve days", []),
        ("You have 14 days.", "within thirty days", ["14"]),
        ("It costs 1,000 dollars.", "the sum of 1000.00 dollars", []),
        ("The law of Norway holds until 5 Jan 2026.", "law of NORWAY, 5 January 2026", []),
        ("It is for Beta Inc alone.", "Acme Inc. and Beta Ltd.", ["beta inc"]),
        ("They told Acme's staff.", "the staff of Acme", []),
        ("They heed Do Not Track signals.", "so-called “Do-Not-Track” signals", []),
        ("They heed Do Track signals.", "so-called “Do Not Track” signals", ["do track"]),
    ],
)
def test_a_fact_stands_in_the_input_in_any_usual_form(
    statement: str, source: str, missing: list[str]
) -> None:
    assert unsupported(statement, source) == missing


@given(st.text(max_size=80))
def test_a_text_supports_itself(text: str) -> None:
    assert unsupported(text, text) == []
