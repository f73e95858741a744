"""Statements are negated by the words that carry it, and denied as a whole where none does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentkit.skill.negation import negated


@pytest.mark.parametrize(
    ("statement", "negation"),
    [
        ("The tenant must clean the stairs.", "The tenant need not clean the stairs."),
        ("The tenant need not clean the stairs.", "The tenant must clean the stairs."),
        ("The tenant may not keep a cat.", "The tenant may keep a cat."),
        ("The tenant must not keep a cat.", "The tenant may keep a cat."),
        ("The tenant may keep a cat.", "The tenant may not keep a cat."),
        ("Tenants can use the cellar.", "Tenants cannot use the cellar."),
        ("Tenants cannot use the cellar.", "Tenants can use the cellar."),
        ("Neither side may sell nor lend it.", "Either side may sell or lend it."),
        ("Either side may sell it.", "Neither side may sell it."),
        ("No tenant may smoke.", "Some tenant may smoke."),
        ("Nobody may smoke.", "Somebody may smoke."),
        ("Nothing is paid back.", "Something is paid back."),
        ("The rent is due in May.", "The rent is not due in May."),
        ("The rent is never due in May.", "The rent is due in May."),
        ("There is no lift.", "There is some lift."),
        ("The keys have to be returned.", "The keys need not be returned."),
        ("The keys do not have to be returned.", "The keys must be returned."),
        ("Cats may live only in the yard.", "Cats may live not only in the yard."),
        ("The supplier owns the drawings.", "The supplier does not own the drawings."),
        ("The party passes the risk on.", "The party does not pass the risk on."),
        ("The customer has a right to them.", "The customer does not have a right to them."),
        ("Heating costs extra.", "It is not true that heating costs extra."),
        ("NDA terms bind both.", "It is not true that NDA terms bind both."),
        ("What is lent comes back.", "It is not true that what is lent comes back."),
        # The verb of a clause within is not the statement's.
        (
            "Some duties go on after the agreement ends.",
            "It is not true that some duties go on after the agreement ends.",
        ),
        (
            "The rent may rise if the index is not lower.",
            "The rent may not rise if the index is not lower.",
        ),
    ],
)
def test_the_word_that_carries_it_is_turned(statement: str, negation: str) -> None:
    assert negated(statement) == negation


def test_what_says_nothing_has_no_negation() -> None:
    assert negated(" \n") == ""


@given(st.text(min_size=1).filter(str.strip))
def test_a_negation_is_another_statement_on_one_line(statement: str) -> None:
    found = negated(statement)
    assert found != " ".join(statement.split())
    assert "\n" not in found
    assert found
