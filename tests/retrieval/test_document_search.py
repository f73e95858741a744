"""Search within a document, and the excerpts that a step is shown."""

import threading
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentkit.errors import DocumentError, InputError
from agentkit.retrieval.document_index import DocumentIndex, VectorCache
from agentkit.retrieval.loaders import document_from_text
from agentkit.retrieval.ranking import BM25, reciprocal_rank_fusion, tokens
from agentkit.retrieval.retriever import Retriever
from agentkit.retrieval.store import FileDocumentStore
from agentkit.settings import Settings


def words(text):
    return len(text.split())


@pytest.fixture
def store(tmp_path):
    return FileDocumentStore(tmp_path / "documents")


@pytest.fixture
def retriever(encoder, store, tmp_path):
    return Retriever(encoder, Settings(home=tmp_path), store)


@pytest.mark.parametrize("mode", ["hybrid", "vector", "text"])
def test_the_span_that_answers_comes_first(agreement, encoder, mode):
    document = document_from_text(agreement, source="a.txt")
    index = DocumentIndex(document, encoder)
    found = index.search("governed by the laws of which State", top_k=3, mode=mode)
    assert "New York" in found[0].text
    assert found[0].source == "a.txt"
    assert [c.score for c in found] == sorted((c.score for c in found), reverse=True)
    assert all(document.text[c.start : c.end] == c.text for c in found)


def test_text_search_gives_only_spans_that_share_a_word(agreement, encoder):
    index = DocumentIndex(document_from_text(agreement), encoder)
    assert index.search("zebra", top_k=5, mode="text") == []
    assert index.search("zebra", top_k=5, mode="hybrid") != []


def test_the_stretches_with_the_best_hits_are_read(agreement, retriever):
    document = document_from_text(agreement)
    chunks = retriever.document_index(document).chunks
    stretches = [
        (chunks[first].start, chunks[min(first + 2, len(chunks) - 1)].end)
        for first in range(0, len(chunks), 3)
    ]
    asked = "governed by the laws of which State"
    (best,) = retriever.best_stretches(document, asked, stretches, most=1)
    assert "New York" in agreement[slice(*stretches[best])]
    three = retriever.best_stretches(document, asked, stretches, most=3)
    assert best in three
    assert three == sorted(set(three))
    assert len(three) == 3
    every = retriever.best_stretches(document, asked, stretches, most=99)
    assert every == list(range(len(stretches)))
    nowhere = {"heading": "No such heading"}
    assert retriever.best_stretches(document, asked, stretches, most=2, filters=nowhere) == [0]


def test_filters_keep_the_spans_under_a_heading(agreement, encoder):
    index = DocumentIndex(document_from_text(agreement), encoder)
    found = index.search("the agreement", top_k=50, filters={"heading": "3. Term"})
    assert found
    assert all(c.start >= agreement.index("3. Term") for c in found)
    assert index.search("the agreement", top_k=5, filters={"page": 1}) == []


@pytest.mark.parametrize(
    "filters",
    [
        {"__class__": "x"},
        {"document; DROP TABLE chunks": "x"},
        {"page": "1 OR 1=1"},
        {"page": True},
        {"source": 3},
        {"source": []},
        {"source": {"$ne": "x"}},
    ],
)
def test_hostile_filters_are_refused(agreement, encoder, filters):
    index = DocumentIndex(document_from_text(agreement), encoder)
    with pytest.raises(InputError, match="filter"):
        index.search("term", top_k=1, filters=filters)


@pytest.mark.parametrize(
    "arguments",
    [
        {"query": " ", "top_k": 1},
        {"query": "x", "top_k": 0},
        {"query": "x", "top_k": 1, "mode": "magic"},
    ],
)
def test_searches_that_cannot_be_meant_are_refused(agreement, encoder, arguments):
    with pytest.raises(InputError):
        DocumentIndex(document_from_text(agreement), encoder).search(**arguments)


def test_vectors_are_computed_once_for_a_document_and_an_encoder(agreement, make_encoder):
    cache = VectorCache()
    encoder, other = make_encoder(), make_encoder(salt="b")
    document = document_from_text(agreement)
    for used in (encoder, encoder, other):
        DocumentIndex(document, used, cache=cache).search("term", top_k=1)
    # Each search encodes its query; the spans are encoded at the first one only.
    assert (encoder.calls, other.calls) == (3, 2)
    assert len(cache) == 2


def test_the_vector_cache_stays_within_its_bytes():
    cache = VectorCache(max_bytes=1000)
    for number in range(20):
        cache.get((str(number), "e", "spans"), lambda: np.ones((10, 10), dtype=np.float32))
    assert (len(cache), cache.nbytes) == (2, 800)
    assert cache.get(("large", "e", "spans"), lambda: np.ones((99, 99), np.float32)).shape[0] == 99
    assert len(cache) == 2


def test_bm25_ranks_rare_words_over_common_ones():
    scores = BM25(["the term the term", "the law", "the fee and the law"]).scores("the fees")
    assert scores.argmax() == 2
    assert (scores > 0).all()
    assert BM25([]).scores("x").shape == (0,)


def test_words_meet_over_their_endings():
    assert tokens("Parties DISCLOSED notices") == tokens("party disclose notice")


@given(st.lists(st.lists(st.integers(0, 20), unique=True, max_size=10), min_size=1, max_size=4))
def test_fusion_is_bounded_and_never_ranks_a_dominated_result_higher(rankings):
    fused = reciprocal_rank_fusion(rankings)
    assert set(fused) == {key for ranking in rankings for key in ranking}
    assert all(0 < score <= 1 + 1e-9 for score in fused.values())
    for ranking in rankings:
        for better, worse in pairwise(ranking):
            elsewhere = [r for r in rankings if r is not ranking]
            if all(better in r and (worse not in r or r.index(better) < r.index(worse))
                   for r in elsewhere):  # fmt: skip
                assert fused[better] > fused[worse]


def test_excerpts_come_in_document_order_within_the_budget(agreement, retriever):
    document = document_from_text(agreement)
    found = retriever.excerpts(
        document, "confidential information", top_k=4, budget_tokens=40, count_tokens=words
    )
    assert found
    assert [c.start for c in found] == sorted(c.start for c in found)
    assert sum(words(c.text) for c in found) <= 40
    assert any("Confidential Information" in c.text for c in found)


def test_neighbours_fill_what_is_left_of_the_budget(agreement, retriever):
    document = document_from_text(agreement)
    query = "Receiving Party shall keep the Confidential Information secret"
    arguments = {"top_k": 1, "budget_tokens": 100, "count_tokens": words}
    alone = retriever.excerpts(document, query, neighbours=False, **arguments)
    beside = retriever.excerpts(document, query, **arguments)
    assert len(alone) == 1
    assert alone[0] in beside
    assert any("advisers" in citation.text for citation in beside)
    assert not any("Governing" in citation.text for citation in beside)


def test_a_span_that_does_not_fit_is_passed_over(retriever):
    document = document_from_text("Fee " * 100 + "is due.\n\nThe fee is small.")
    (found,) = retriever.excerpts(
        document, "fee", top_k=5, budget_tokens=10, count_tokens=words, neighbours=False
    )
    assert found.text == "The fee is small."


def test_no_budget_gives_no_excerpts(agreement, retriever):
    document = document_from_text(agreement)
    assert retriever.excerpts(document, "fee", top_k=5, budget_tokens=0, count_tokens=words) == ()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    budget=st.integers(0, 200),
    top_k=st.integers(1, 30),
    query=st.sampled_from(["term", "party shall disclose", "zebra", "State of New York"]),
)
def test_the_budget_always_holds(retriever, agreement, budget, top_k, query):
    found = retriever.excerpts(
        document_from_text(agreement), query, top_k=top_k, budget_tokens=budget, count_tokens=words
    )
    assert sum(words(c.text) for c in found) <= budget
    assert [c.start for c in found] == sorted({c.start for c in found})


def test_a_document_can_be_named_by_its_digest(agreement, retriever, store):
    document = document_from_text(agreement)
    store.put(document)
    arguments = {"top_k": 2, "budget_tokens": 100, "count_tokens": words}
    assert retriever.excerpts(document.digest, "term", **arguments) == retriever.excerpts(
        document, "term", **arguments
    )
    with pytest.raises(DocumentError, match="not in the store"):
        retriever.excerpts("0" * 64, "term", **arguments)


def test_threads_get_the_excerpts_of_their_own_document(retriever):
    documents = [
        document_from_text(f"The fee of party {n} is {n} euro.\n\nThe law is that of place {n}.")
        for n in range(8)
    ]
    results = {}

    def ask(number):
        for _ in range(5):
            found = retriever.excerpts(
                documents[number], "fee", top_k=1, budget_tokens=50, count_tokens=words
            )
            results.setdefault(number, []).append(found)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, answers in results.items():
        assert len(answers) == 5
        assert all(f"party {number} is" in answer[0].text for answer in answers)
