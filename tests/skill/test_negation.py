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
        ("The tenant doesn’t have to clean them.", "The tenant must clean them."),
        ("The tenant may not keep any cat.", "The tenant may keep some cat."),
        ("The tenant must not keep a cat.", "The tenant may keep a cat."),
        ("The tenant may keep some cats.", "The tenant may not keep any cats."),
        ("Tenants can use the cellar.", "Tenants cannot use the cellar."),
        ("Tenants can't use the cellar.", "Tenants can use the cellar."),
        ("Neither side must sell it.", "At least one side may sell it."),
        ("No tenant shall smoke.", "Some tenant may smoke."),
        ("Nobody may smoke.", "Somebody may smoke."),
        ("Nothing is paid back.", "Something is paid back."),
        ("Each side pays its costs.", "Not every side pays its costs."),
        ("All costs are shared.", "Not all costs are shared."),
        ("Some duties may survive.", "No duties may survive."),
        ("The rent is due in May.", "The rent is not due in May."),
        ("The rent is never due in May.", "The rent is due in May."),
        ("The right never lapses.", "The right lapses."),
        ("A tenant never has to move.", "A tenant must move."),
        ("There is no lift.", "There is some lift."),
        ("The tenant must make no copies.", "The tenant may make some copies."),
        ("The keys have to be returned.", "The keys need not be returned."),
        ("The notice is to be in writing.", "The notice need not be in writing."),
        ("The plan has been agreed.", "The plan has not been agreed."),
        ("Cats shall live only in the yard.", "Cats may live not only in the yard."),
        ("The supplier owns the drawings.", "The supplier does not own the drawings."),
        ("The supplier passes the risk on.", "The supplier does not pass the risk on."),
        ("A third party has a right to them.", "A third party does not have a right to them."),
        # The verb of a clause within is not the statement's.
        (
            "The rent may rise if the index is not lower.",
            "The rent may not rise if the index is not lower.",
        ),
    ],
)
def test_the_word_that_carries_it_is_turned(statement: str, negation: str) -> None:
    assert negated(statement) == negation


@pytest.mark.parametrize(
    "statement",
    [
        "Heating costs extra.",
        "NDA terms bind both.",
        "Germany's law applies.",
        "Captions serve convenience only.",
        # Of several verbs one alone would be turned.
        "A licence is granted for ever or cannot be taken back.",
        "Raises are capped or need consent.",
        "The tenant may sublet it but must not sell it.",
        "All rights are kept and either side may use them.",
        # Exceptions and amounts would stand in the way.
        "The recipient must not disclose it except to employees.",
        "It may be told to nobody unless they ask.",
        "No more than three copies may be made.",
        "The agreement no longer counts.",
        "Either side may end it.",
        "Neither the buyer nor the seller may end it.",
        # The first verb belongs to another clause.
        "As long as the lease is in force, rent is due.",
        "The lease expires after the notice is received.",
        "The tenant always pays.",
    ],
)
def test_where_no_single_word_carries_it_the_whole_is_denied(statement: str) -> None:
    found = negated(statement)
    assert found is not None
    assert found.startswith("It is not true that ")
    assert found.lower().endswith(statement.lower())


def test_names_keep_their_capitals_within_a_denial() -> None:
    assert negated("Germany's law applies.") == "It is not true that Germany's law applies."
    found = negated("The landlord’s law applies.")
    assert found == "It is not true that the landlord's law applies."


@pytest.mark.parametrize("nothing", [" \n", "", "Must the tenant clean?"])
def test_what_states_nothing_has_no_negation(nothing: str) -> None:
    assert negated(nothing) is None


@given(st.text(min_size=1).filter(str.strip))
def test_a_negation_is_another_statement_on_one_line(statement: str) -> None:
    found = negated(statement)
    if found is None:
        assert statement.rstrip().endswith("?")
    else:
        assert found != " ".join(statement.split())
        assert len(found.splitlines()) == 1
