from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentkit.errors import InputError
from agentkit.training.plain_words import PlainWords

ROWS = [
    {"words": "party|parties", "plain": "side"},
    {"words": "third part(?:y|ies)", "plain": "outsiders who are no party"},
    {"words": "terminate", "plain": "end"},
]


def test_the_longest_wording_is_replaced_and_nothing_twice() -> None:
    words = PlainWords(ROWS, where="words")
    assert words.of("Third parties may not terminate it for a party.") == (
        "Outsiders who are no party may not end it for a side."
    )
    assert words.of("A determinate partying stays.") == "A determinate partying stays."


@given(st.text())
def test_without_rows_a_text_stays_as_it_is(text: str) -> None:
    words = PlainWords([], where="words")
    assert not words
    assert words.of(text) == text


@pytest.mark.parametrize("row", [{"words": "party"}, {"words": "(", "plain": "side"}])
def test_a_row_that_is_none_says_its_line(row: dict[str, str]) -> None:
    with pytest.raises(InputError, match="words:1"):
        PlainWords([row], where="words")
