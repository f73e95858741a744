"""Rules and their plain negations, as training data."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentkit.errors import InputError
from agentkit.training.negations import Negations, negated

ROWS = [
    {"words": r"\b(?:may|must) not\b", "instead": "may"},
    {"words": r"^no\b", "instead": "any"},
    {"words": r"\bmay\b", "instead": "may not"},
    {"words": r"\b(is|are)\b", "instead": r"\1 not"},
]
NEGATIONS = Negations(ROWS, where="negations")
LABELS = ("Entailment", "Contradiction", "NotMentioned")


@pytest.mark.parametrize(
    ("rule", "negation"),
    [
        ("Ann may go.", "Ann may not go."),
        ("Ann must not go.", "Ann may go."),
        ("No cat may go.", "Any cat may go."),
        ("Cats are white and may go.", "Cats are white and may not go."),
        ("It IS white.", "It IS not white."),
        ("Ann goes.", None),
    ],
)
def test_the_first_row_that_a_rule_has_words_of_is_replaced_once(
    rule: str, negation: str | None
) -> None:
    assert NEGATIONS.of(rule) == negation


@given(
    st.lists(st.tuples(st.sampled_from(["Ann may go.", "Ann goes."]), st.sampled_from(LABELS))),
    st.integers(0, 9),
)
def test_a_label_turns_with_its_rule_and_nothing_else_changes(
    asked: list[tuple[str, str]], seed: int
) -> None:
    records = [{"hypothesis": text, "label": label, "document": "x"} for text, label in asked]
    turned = dict(zip(LABELS, (LABELS[1], LABELS[0], LABELS[2]), strict=True))
    given_, all_, some = (
        list(negated(records, NEGATIONS, share, seed)) for share in (0.0, 1.0, 0.5)
    )
    assert given_ == records
    for before, after, drawn in zip(records, all_, some, strict=True):
        known = before["hypothesis"] == "Ann may go."
        assert after["hypothesis"] == ("Ann may not go." if known else "Ann goes.")
        assert after["label"] == (turned[before["label"]] if known else before["label"])
        assert after["document"] == "x"
        assert drawn in (before, after)


@pytest.mark.parametrize("row", [{"words": "may"}, {"instead": "x"}, {"words": "(", "instead": ""}])
def test_a_row_that_is_none_says_its_line(row: dict[str, str]) -> None:
    with pytest.raises(InputError, match="negations:1"):
        Negations([row], where="negations")
