"""Grounded strings hold no number and no name that was not shown."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentkit.skill.grounding import WORD, grounded_answer, grounded_pattern, grounded_schema

SHOWN = (
    "ACME Ltd. pays Müller GmbH 1,500 euros within 30 days of 3 March 2024. Copies stay. "
    "A fee of 8.5 % under Section 7.4 goes to AT&T Corp, open 24/7."
)


@pytest.mark.parametrize(
    "text",
    [
        "Acme pays 1,500 euros to Müller within 30 days.",
        "You may keep copies. Copies stay with ACME (until March)!",
        "“Nothing” is due before 3 March 2024",
        "thirty days are enough.",
        "A fee of 8.5% is due to AT&T's bank (see Section 7.4).",
        "AT&T Corp's fee.",
        "Müller, ACME and AT&T (Müller GmbH’s bank) are paid, see Section 7.4, March 2024.",
        "1,500 is the most, and/or 8.5 %. The well-known fee doesn't apply 24/7.",
    ],
)
def test_what_was_shown_may_be_written(text: str) -> None:
    assert re.search(grounded_pattern(SHOWN), text)


@pytest.mark.parametrize(
    "text",
    [
        "Acme pays 1,600 euros.",
        "Acme pays 150 euros.",
        "Acme pays 15003 euros.",
        "The term ends in April.",
        "Globex pays.",
        "The buyer tells the FTC.",
        "ACME GmbH pays.",
        "Müller Ltd. is paid.",
        "It is due in March 7.4.",
        "Section 2024 is void.",
        "It is due at 30days.",
        "A fee of 5 % is due.",
        "It ends after 4 days.",
        "It ends after 30,3 days.",
        "The fee of 8.5.3 % is due.",
        "Müller-ACME pays.",
        "Because of the bank's())fees.",
        "$1,500 is the most.",
        "It costs £1,500.",
        "It costs 1,500€.",
        "",
    ],
)
def test_what_was_not_shown_cannot_be_written(text: str) -> None:
    assert not re.search(grounded_pattern(SHOWN), text)


@given(st.text("aB3ü .,'-\n", max_size=30))
def test_any_prompt_gives_a_pattern_that_its_own_names_and_numbers_meet(shown: str) -> None:
    pattern = grounded_pattern(shown)
    for word in WORD.findall(shown):
        assert re.search(pattern, f"This is {word}")
    assert not re.search(pattern, "This is 77 Zz")


def test_only_grounded_strings_are_narrowed() -> None:
    schema = {
        "type": "object",
        "properties": {
            "why": {"type": "string", "maxLength": 40, "x-grounded": True},
            "each": {"type": "array", "items": {"type": "string", "x-grounded": True}},
            "free": {"type": "string", "x-grounded": False},
        },
    }
    narrowed = grounded_schema(schema, SHOWN)["properties"]
    pattern = grounded_pattern(SHOWN)
    assert narrowed["why"] == {"type": "string", "maxLength": 40, "pattern": pattern}
    assert narrowed["each"]["items"] == {"type": "string", "pattern": pattern}
    assert narrowed["free"] == {"type": "string"}


def test_ordinary_words_begin_sentences_and_no_month_is_made_of_a_verb() -> None:
    pattern = grounded_pattern(
        "the party may read the terms of service of acme, at www.globex.com, and doesn't pay"
    )
    for text in ("Users agree. Failure is a breach.", "The Terms are read.", "The Acme party."):
        assert re.search(pattern, text), text
    for text in ("The Users agree.", "It ends in May.", "It is Globex.", "It is Doesn."):
        assert not re.search(pattern, text), text


def test_a_sign_that_was_not_shown_makes_no_amount_of_a_number() -> None:
    pattern = grounded_pattern("The fee is capped at £500,000 and notice is 30 days.")
    for text in ("It is capped at £500,000.", "Notice is 30 days."):
        assert re.search(pattern, text)
    for text in ("It is capped at $500,000.", "It is 500,000%.", "Notice is 30 %."):
        assert not re.search(pattern, text)


@pytest.mark.parametrize(
    ("answer", "written"),
    [
        ("Users read the Terms of Globex (DNT).", "Users read the Terms of globex (dnt)."),
        ("Globex pays. The UN pays 30.", "globex pays. The un pays 30."),
        ("It was Acme.", "It was Acme."),
        ("It costs 77 Euros.", "It costs 77 euros."),
    ],
)
def test_an_answer_is_taught_as_it_can_be_written(answer: str, written: str) -> None:
    schema = {
        "type": "object",
        "properties": {
            "why": {"type": "array", "items": {"type": "string", "x-grounded": True}},
            "free": {"type": "string"},
        },
    }
    given = {"why": [answer], "free": answer, "more": answer}
    assert grounded_answer(schema, given, "the terms of Acme, 30 days") == {
        "why": [written],
        "free": answer,
        "more": answer,
    }
