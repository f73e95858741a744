"""What is shown of what was found: duplicates, lead-ins, neighbours, and the budget."""

from hypothesis import given
from hypothesis import strategies as st

from agentkit.retrieval.selection import lead_in, said, select
from agentkit.types import Chunk


def words(text):
    return len(text.split())


def chunks_of(*texts, heading=("1. Duties",)):
    chunks, at = [], 0
    for text in texts:
        chunks.append(Chunk(f"d:{at}", "d", at, at + len(text), text, heading))
        at += len(text) + 1
    return chunks


LIST = chunks_of(
    "The Recipient shall not:",
    "(a) copy the drawings;",
    "(b) sell the drawings; or",
    "(c) show them to anyone.",
    "Notices are in writing.",
)


def test_a_list_item_brings_its_lead_in():
    assert select(LIST, [3], budget=14, count_tokens=words) == [3, 0, 4]
    assert select(LIST, [3], budget=100, count_tokens=words, neighbours=False) == [3]


def test_a_lead_in_stands_above_the_items_of_its_own_list_only():
    assert [lead_in(LIST, n) for n in range(5)] == [None, 0, 0, 0, None]
    other = [*chunks_of("The Recipient shall:"), *chunks_of("(a) pay.", heading=("2. Price",))]
    assert lead_in(other, 1) is None


def test_a_passage_that_says_the_same_under_another_number_is_dropped():
    twice = chunks_of("1.1 Keep it secret.", "Pay at once.", "(b) keep it SECRET;")
    assert select(twice, [0, 2, 1], budget=50, count_tokens=words) == [0, 1]


def test_passages_that_differ_by_one_word_are_both_shown():
    opposite = chunks_of(
        "The Receiving Party shall disclose the existence of this Agreement to its bank.",
        "The Receiving Party shall not disclose the existence of this Agreement to its bank.",
        "The term is 2 years.",
        "The term is 3 years.",
    )
    assert select(opposite, [0, 1, 2, 3], budget=99, count_tokens=words) == [0, 1, 2, 3]


def test_what_does_not_fit_is_passed_over_for_what_does():
    texts = chunks_of("one two three four five", "six seven", "eight nine ten")
    assert select(texts, [0, 1, 2], budget=4, count_tokens=words, neighbours=False) == [1]


def test_neighbours_come_after_every_hit_and_stay_under_the_heading():
    texts = [*chunks_of("A b.", "C d.", "E f."), *chunks_of("G h.", heading=("2.",))]
    assert select(texts, [2, 0], budget=99, count_tokens=words) == [2, 0, 1]
    assert select(texts, [2], budget=99, count_tokens=words, allowed=lambda n: n != 1) == [2]


def test_a_passage_of_marks_alone_is_not_the_duplicate_of_every_other():
    assert said("1.") == ("1",)
    assert said("(a)") == ("a",)


@given(
    st.lists(st.text("ab c(1).:;", min_size=1, max_size=30), min_size=1, max_size=12),
    st.integers(0, 40),
    st.data(),
)
def test_the_budget_is_kept_and_nothing_is_shown_twice(texts, budget, data):
    chunks = chunks_of(*texts)
    hits = data.draw(st.permutations(range(len(texts))))
    taken = select(chunks, hits, budget=budget, count_tokens=words)
    assert sum(words(chunks[n].text) for n in taken) <= budget
    assert len(set(taken)) == len(taken)
    assert len({said(chunks[n].text) for n in taken}) == len(taken)
