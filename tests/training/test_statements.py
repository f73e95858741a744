"""Statements tied to clauses by patterns."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentkit.errors import InputError
from agentkit.training.statements import Statements


def said(clause: str, *rows: dict[str, Any], category: str = "Notice") -> dict[str, str]:
    whole = [{"category": "Notice", "rating": "neutral", **row} for row in rows]
    return Statements(whole, where="rows").of(category, clause, random.Random(0))


@pytest.mark.parametrize(
    ("clause", "period"),
    [
        ("upon thirty (30) days' prior notice", "30 days"),
        ("on 2 years notice", "2 years"),
        ("within ten (10) business days after notice", "10 business days"),
        ("a ninety-day period of notice", None),
        ("twelve months before", "twelve months"),
    ],
)
def test_a_period_is_said_as_it_stands_in_the_clause(clause: str, period: str | None) -> None:
    row = {"pattern": "<period>", "statement": "Notice of {period} is due."}
    expected = f"Notice of {period} is due." if period else None
    assert said(clause, row).get("statement") == expected


def test_places_begin_with_a_capital_though_case_is_ignored_elsewhere() -> None:
    row = {"pattern": "LAWS OF <place>", "statement": "The law of {place} holds."}
    assert said("the laws of New Jersey", row)["statement"] == "The law of New Jersey holds."
    assert said("the laws of conflict", row) == {}


def test_what_is_tied_to_the_clause_goes_before_what_holds_in_general() -> None:
    general = {"statement": "Notice is due."}
    tied = {"pattern": "written", "statement": "Notice must be written."}
    assert said("by written notice", general, tied)["statement"] == "Notice must be written."
    assert said("by notice", general, tied)["statement"] == "Notice is due."


def test_an_unknown_category_has_no_statement() -> None:
    assert said("x", {"statement": "y"}, category="Other") == {}


@pytest.mark.parametrize(
    ("row", "message"),
    [({"pattern": "(", "statement": "x"}, "rows:1"), ({"rating": "good"}, "lacks 'statement'")],
)
def test_a_bad_row_is_named(row: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        said("x", row)


@given(st.text(max_size=200))
def test_any_clause_gets_a_whole_statement_or_none(clause: str) -> None:
    patterns = ("<period>", "<percent>", "<money>", "<place>")
    rows = [{"pattern": p, "statement": "x {" + p[1:-1] + "} y"} for p in patterns]
    statement = said(clause, *rows).get("statement", "x 1 y")
    assert "{" not in statement.replace(clause, "")
    assert "x  y" not in statement
