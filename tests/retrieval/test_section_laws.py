"""Laws of sections, spans and chunks, for any text made of the parts of contracts."""

from hypothesis import given, settings
from hypothesis import strategies as st

from agentkit.retrieval.chunking import chunk_document, span_chunks
from agentkit.retrieval.loaders import document_from_text

PARTS = (
    "ARTICLE IV\n",
    "1. Definitions\n",
    '1.1 "Fee" means the sum that is due.\n',
    "2. TERM. The term is two years; it ends then.\n",
    "# Scope\n",
    "(a) the first item;\n(b) the second item.\n",
    "- a point\n",
    "Service | Fee\nHosting | 100\n",
    "The parties agree that Acme Inc. pays within 30 days, e.g. on Monday. ",
    "word " * 400,
    "x" * 1500,
    "\n\n",
    "\f",
    "   ",
    "\u202bהסכם זה\u202c ",
    "§ 4.2: Notices\r\n",
)
texts = st.lists(st.sampled_from(PARTS) | st.text(max_size=20), min_size=1, max_size=12).map(
    "".join
)
readable = texts.filter(
    lambda text: text.strip() and not any("\ud800" <= c <= "\udfff" for c in text)
)
media_types = st.sampled_from(["text/plain", "text/markdown"])


@settings(max_examples=60)
@given(readable, media_types)
def test_sections_tile_the_text_and_begin_at_their_heading(text, media_type):
    document = document_from_text(text, media_type=media_type)
    assert document.text == text
    position = 0
    for section in document.sections:
        assert section.start == position < section.end
        position = section.end
    assert position == len(text)
    for section in document.sections:
        if section.heading and media_type == "text/plain":
            begins = " ".join(text[section.start : section.end].split())
            assert begins.startswith(section.heading[-1])


@settings(max_examples=60)
@given(readable, media_types)
def test_spans_never_overlap_and_hold_every_word(text, media_type):
    document = document_from_text(text, media_type=media_type)
    position = 0
    for span in document.spans:
        assert position <= span.start < span.end
        assert not text[position : span.start].strip()
        assert text[span.start : span.end] == text[span.start : span.end].strip()
        position = span.end
    assert not text[position:].strip()


@settings(max_examples=60)
@given(readable, media_types, st.integers(20, 1500))
def test_chunks_slice_the_text_never_overlap_and_lose_nothing(text, media_type, size):
    document = document_from_text(text, media_type=media_type)
    paths = {section.heading for section in document.sections}
    for chunks in (chunk_document(document, max_chars=size), span_chunks(document)):
        position = 0
        for chunk in chunks:
            assert text[chunk.start : chunk.end] == chunk.text
            assert position <= chunk.start < chunk.end
            assert not text[position : chunk.start].strip()
            assert chunk.heading in paths
            position = chunk.end
        assert not text[position:].strip()
    assert all(len(chunk.text) <= size for chunk in chunk_document(document, max_chars=size))
