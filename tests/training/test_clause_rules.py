"""Rules about labelled clauses: how they are asked, and the text that they are asked of."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentkit.errors import InputError
from agentkit.training.clause_rules import ClauseRules, excerpt, plain_answers

ROWS = [
    {"category": "Law", "text": "The law of {answer} applies.", "negated": False},
    {"category": "Law", "text": "The law of {other} applies.", "negated": True},
    {"category": "Cap", "text": "Liability is limited.", "negated": False},
    {"category": "Cap", "text": "Liability is unlimited.", "negated": True},
    {"category": "Audit", "text": "Books may be seen.", "negated": False, "unseen": True},
]
LAWS = ["Kent", "North Kent", "Surrey"]


def rules(*, unseen: bool = False) -> ClauseRules:
    return ClauseRules(ROWS, unseen=unseen, where="rules.jsonl")


def test_rules_that_are_kept_to_measure_on_are_never_among_the_others() -> None:
    assert rules().categories == ("Law", "Cap")
    assert rules(unseen=True).categories == ("Audit",)


def test_a_clause_entails_its_rule_and_contradicts_the_opposite() -> None:
    seen = set()
    for seed in range(20):
        for asked in rules().about("Cap", "Yes", [], random.Random(seed)):
            seen.add((asked.text, asked.label))
    assert seen == {
        ("Liability is limited.", "Entailment"),
        ("Liability is unlimited.", "Contradiction"),
    }


def test_an_opposite_names_what_cannot_be_read_as_the_contracts_own_answer() -> None:
    for seed in range(20):
        asked = rules().one("Law", "Kent", LAWS, random.Random(seed), negated=True)
        assert asked is not None
        assert asked.text == "The law of Surrey applies."


def test_an_answer_that_cannot_stand_in_a_sentence_is_not_put_into_one() -> None:
    assert rules().one("Law", "[]", LAWS, random.Random(1), negated=False) is None
    assert plain_answers(["Kent", "[]", "", "Kent", "a; b"]) == ["Kent"]


def test_a_missing_clause_leaves_a_rule_undecided() -> None:
    asked = rules().absent("Law", LAWS, random.Random(1))
    assert asked is not None
    assert asked.label == "NotMentioned"
    assert "{" not in asked.text


def test_a_malformed_rule_is_named_by_its_line() -> None:
    with pytest.raises(InputError, match="category") as caught:
        ClauseRules([*ROWS, {"text": "x"}], unseen=False, where="rules.jsonl")
    assert "rules.jsonl:6" in str(caught.value)


words = st.lists(st.sampled_from(["law", "cap", "fee", "end.", "then;", "\n\n"]), min_size=5)


@given(words, st.data())
def test_an_excerpt_keeps_every_clause_that_it_names_word_for_word(
    parts: Sequence[str], data: st.DataObject
) -> None:
    text = " ".join(parts) * 40
    at = st.integers(0, len(text) - 2)
    places = {
        name: [(start, data.draw(st.integers(start + 1, min(len(text), start + 90))))]
        for name in ("a", "b", "c")
        for start in [data.draw(at)]
    }
    limit = data.draw(st.integers(1, 3000))
    short, left = excerpt(text, places, limit, random.Random(3))
    assert left
    for name, found in left.items():
        was = [text[start:end] for start, end in places[name]]
        assert [short[start:end] for start, end in found] == was


def test_an_excerpt_stays_within_its_characters() -> None:
    text = "".join(f"Clause {n:03d} says what it says. " for n in range(400))
    places = {f"c{n}": [(n * 31, n * 31 + 29)] for n in range(0, 390, 30)}
    short, left = excerpt(text, places, 2500, random.Random(3))
    assert 0 < len(left) < len(places)
    assert len(short) <= 2500 + 2 * len(left)
