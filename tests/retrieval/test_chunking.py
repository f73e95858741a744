"""Laws of chunks: they recover the source."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from agentkit.retrieval.chunking import chunk_document, span_chunks
from agentkit.retrieval.loaders import document_from_text

PIECES = st.sampled_from(
    [
        "1. Definitions\n\n", "ARTICLE II\n", "GOVERNING LAW\n\n", "# Head\n\n", "(a) item one;\n",
        "The term is two years. ", "It ends; then it is over.\n", "\n\n", "   ", "\t", "\r\n",
        "word", "x" * 90, "é—“”€ ", "本協議", "\f", "\x0b", "\u2028", "No. 5 of Inc. ",
        "4.2 Term. ",
    ]
)  # fmt: skip
TEXTS = (
    st.lists(PIECES | st.text(max_size=20), min_size=1, max_size=40)
    .map("".join)
    .filter(lambda text: text.strip() and not any("\ud800" <= c <= "\udfff" for c in text))
)
MEDIA = st.sampled_from(["text/plain", "text/markdown"])


@given(TEXTS, MEDIA)
def test_sections_tile_the_text(text, media_type):
    document = document_from_text(text, media_type=media_type)
    assert document.text == text
    assert document.sections[0].start == 0
    assert document.sections[-1].end == len(text)
    for before, after in pairwise(document.sections):
        assert before.end == after.start


@given(TEXTS, MEDIA, st.integers(1, 200))
def test_chunks_recover_the_source(text, media_type, max_chars):
    document = document_from_text(text, media_type=media_type)
    chunks = chunk_document(document, max_chars=max_chars)
    assert all(document.text[c.start : c.end] == c.text and c.text.strip() for c in chunks)
    assert all(len(chunk.text) <= max_chars for chunk in chunks)
    assert all(a.end <= b.start for a, b in pairwise(chunks))
    assert len({chunk.id for chunk in chunks}) == len(chunks)
    for span in document.spans:
        parts = [c for c in chunks if c.start < span.end and c.end > span.start]
        whole = parts[0].start <= span.start and span.end <= parts[-1].end
        assert whole
        assert len(parts) == 1 or span.end - span.start > max_chars


@given(TEXTS)
def test_every_span_is_a_chunk_of_its_own(text):
    document = document_from_text(text)
    chunks = span_chunks(document)
    assert [(chunk.start, chunk.end) for chunk in chunks] == [
        (span.start, span.end) for span in document.spans
    ]
    assert all(chunk.text == text[chunk.start : chunk.end] for chunk in chunks)


def test_a_run_without_a_space_is_cut_however_long_it_is():
    text = "Before it. " + "AbC/" * 200_000 + " After it."
    document = document_from_text(text)
    assert max(span.end - span.start for span in document.spans) <= 600
    said = "".join(text[span.start : span.end] for span in document.spans)
    assert said.replace(" ", "") == text.replace(" ", "")


def test_a_chunk_knows_its_heading_and_stays_under_it(agreement):
    document = document_from_text(agreement)
    chunks = chunk_document(document, max_chars=10_000)
    assert [chunk.heading for chunk in chunks] == [section.heading for section in document.sections]
    assert chunks[0].id == f"{document.digest[:12]}:{chunks[0].start}-{chunks[0].end}"


def test_a_chunk_knows_its_page():
    document = document_from_text("The first page.\fThe second page.")
    assert [chunk.page for chunk in span_chunks(document)] == [1, 2]
