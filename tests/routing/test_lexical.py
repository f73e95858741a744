"""Words and runs of letters as evidence, and what of it is held out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentkit.routing.lexical import NaiveBayes, count_terms, letter_terms, word_terms

TEXTS = ["find the clause", "find every clause", "check the rule", "check this rule", "find a rule"]
LABEL = np.array([0, 0, 1, 1, 1])


def fitted(texts: list[str], label: np.ndarray) -> NaiveBayes:
    rows = [word_terms(text) for text in texts]
    return NaiveBayes.fit(
        [count_terms([rows[k] for k in np.flatnonzero(label == c)]) for c in range(2)]
    )


@given(st.text(max_size=300))
def test_every_text_has_sorted_terms_each_once(text: str) -> None:
    for terms in (word_terms(text), letter_terms(text)):
        assert (np.diff(terms) > 0).all()


def test_a_text_is_likeliest_in_the_class_whose_words_it_has() -> None:
    scores = fitted(TEXTS, LABEL).scores([word_terms("find clause"), word_terms("check rule")])
    assert scores.argmax(axis=1).tolist() == [0, 1]


def test_words_that_no_class_has_say_nothing() -> None:
    model = fitted(TEXTS, LABEL)
    known, more = model.scores([word_terms("zebra"), np.empty(0, np.int32)])
    np.testing.assert_array_equal(known, 0.0)
    np.testing.assert_array_equal(more, 0.0)


def test_a_held_out_score_of_its_own_class_does_not_know_the_row() -> None:
    rows = [word_terms(text) for text in TEXTS]
    model = fitted(TEXTS, LABEL)
    held_out = model.held_out(rows, LABEL)
    plain = model.scores(rows)
    own = np.arange(len(rows)), LABEL
    assert (held_out[own] < plain[own]).all()


@pytest.mark.parametrize("held_out", [False, True])
def test_coverage_is_the_share_of_known_terms(held_out: bool) -> None:
    rows = [word_terms(text) for text in TEXTS]
    coverage = fitted(TEXTS, LABEL).coverage(rows, LABEL, np.full(len(rows), held_out))
    assert ((coverage >= 0) & (coverage <= 1 + 1e-6)).all()
    assert held_out == bool((coverage < 1 - 1e-6).any())
