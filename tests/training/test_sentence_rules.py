"""Rules made of a contract's own sentences: what they say, and what they deny."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentkit.training.sentence_rules import Sentence, reworded, sentence_rules, sentences

TEXT = """1. Goods

(a) The Supplier shall deliver the goods to the port of Oslo, unless it is closed.

(b) The Buyer may not resell them to anybody in Norway.

If the port is closed, nothing happens. The Buyer may return goods that are broken.

Deliveries are made before noon (in winter).
"""


def made(text: str, *, opposite: bool) -> set[str]:
    (sentence,) = sentences(text)
    return {reworded(sentence, random.Random(seed), opposite=opposite) for seed in range(40)}


def test_a_sentence_has_one_duty_right_or_ban_and_no_condition() -> None:
    found = [(s.subject, s.verb, s.rest) for s in sentences(TEXT)]
    assert found == [
        ("The Supplier", "shall", "deliver the goods to the port of Oslo"),
        ("The Buyer", "may not", "resell them to anybody in Norway"),
        ("The Buyer", "may", "return goods that are broken"),
        ("Deliveries", "are", "made before noon"),
    ]
    for sentence in sentences(TEXT):
        assert sentence.subject in TEXT[sentence.start : sentence.end]


@pytest.mark.parametrize(
    ("text", "same", "opposite"),
    [
        (
            "The Tenant shall paint the house each year.",
            "The Tenant must paint the house each year.",
            "The Tenant need not paint the house each year.",
        ),
        (
            "The Tenant may not sublet any of the rooms.",
            "The Tenant is not allowed to sublet any of the rooms.",
            "The Tenant may sublet any of the rooms.",
        ),
        (
            "The rooms of the house may be let to others.",
            "The rooms of the house are allowed to be let to others.",
            "The rooms of the house may not be let to others.",
        ),
        (
            "This lease is a contract of the city.",
            "This lease is a contract of the city.",
            "This lease is never a contract of the city.",
        ),
    ],
)
def test_a_sentence_is_said_in_other_words_and_turned(text: str, same: str, opposite: str) -> None:
    assert same in made(text, opposite=False)
    assert opposite in made(text, opposite=True)
    assert not made(text, opposite=False) & made(text, opposite=True)


OTHER = [
    Sentence("The Licensee", "may", "copy the software for archives", 0, 0),
    Sentence("The Supplier", "will", "deliver the goods to the port of Bergen", 0, 0),
]


def test_what_others_say_is_not_mentioned_unless_it_is_much_the_same() -> None:
    own = list(sentences(TEXT))
    asked = sentence_rules(own, OTHER, random.Random(1), absent=2)
    absent = [text for text, label, _ in asked if label == "NotMentioned"]
    assert len(absent) == 1
    assert absent[0].startswith("The Licensee")


@given(st.integers(0, 1000))
def test_every_other_sentence_is_asked_both_ways(seed: int) -> None:
    own = list(sentences(TEXT))
    asked = sentence_rules(own, [], random.Random(seed), absent=2)
    labels = [sorted(label for _, label, by in asked if by is one) for one in own]
    both = ["Contradiction", "Entailment"]
    assert labels[0] == labels[2] == both
    assert len(labels[1]) == len(labels[3]) == 1
