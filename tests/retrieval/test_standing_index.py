"""Standing indexes on disk."""

import json
import threading

import pytest

from agentkit.errors import InputError
from agentkit.retrieval.index import Index
from agentkit.retrieval.loaders import document_from_text
from agentkit.retrieval.retriever import Retriever
from agentkit.retrieval.store import FileDocumentStore

LEASE = """\
1. Rent

The tenant pays the rent on the first day of each month.

2. Repairs

The landlord repairs the roof; it's the tenant's duty to report leaks.
"""


@pytest.fixture
def documents(agreement):
    return (
        document_from_text(agreement, source="agreement.txt"),
        document_from_text(LEASE, source="tenant's lease.txt"),
    )


@pytest.fixture
def index(tmp_path, encoder, documents):
    index = Index.open(tmp_path / "index", encoder, max_chars=200)
    for document in documents:
        index.add(document)
    return index


@pytest.mark.parametrize("mode", ["hybrid", "vector", "text"])
def test_the_chunk_that_answers_comes_first(index, documents, mode):
    found = index.search("who pays the rent of the tenant each month", top_k=3, mode=mode)
    assert "rent on the first day" in found[0].text
    assert found[0].source == "tenant's lease.txt"
    assert [c.score for c in found] == sorted((c.score for c in found), reverse=True)
    texts = {document.digest: document.text for document in documents}
    assert all(texts[c.document][c.start : c.end] == c.text for c in found)


def test_a_document_is_added_once(index, documents):
    size = len(index)
    assert index.add(documents[0]) == 0
    assert len(index) == size
    assert index.documents() == {d.digest: d.source for d in documents}


def test_a_removed_document_is_not_found_again(index, documents):
    assert index.remove(documents[1].digest) > 0
    assert index.remove(documents[1].digest) == 0
    found = index.search("rent", top_k=10)
    assert {citation.document for citation in found} == {documents[0].digest}
    assert index.add(documents[1]) > 0
    assert "rent" in index.search("rent", top_k=1, mode="text")[0].text


def test_an_index_outlives_its_process_object(index, tmp_path, encoder):
    again = Index.open(tmp_path / "index", encoder)
    assert len(again) == len(index)
    assert again.search("rent", top_k=1)[0] == index.search("rent", top_k=1)[0]


def test_a_reader_sees_what_another_one_adds(index, tmp_path, encoder):
    reader = Index.open(tmp_path / "index", encoder)
    index.add(document_from_text("The zebra belongs to the zoo.", source="zoo.txt"))
    assert reader.search("zebra", top_k=1, mode="text")[0].source == "zoo.txt"


def test_filters_narrow_the_search(index, documents):
    for filters in (
        {"document": documents[1].digest},
        {"source": "tenant's lease.txt"},
        {"source": ["tenant's lease.txt", "other.txt"], "heading": ["1. Rent", "2. Repairs"]},
    ):
        found = index.search("the agreement of the parties", top_k=20, filters=filters)
        assert {citation.document for citation in found} == {documents[1].digest}
    found = index.search("tenant", top_k=20, filters={"heading": "2. Repairs"}, mode="text")
    assert ["roof" in citation.text for citation in found] == [True]
    assert index.search("tenant", top_k=5, filters={"page": 3}) == []


@pytest.mark.parametrize(
    "value", ["x' OR '1'='1", "'; DROP TABLE chunks; --", '"', "\\'", "%", "x') OR (1=1"]
)
def test_hostile_filter_values_match_nothing(index, value):
    size = len(index)
    assert index.search("rent", top_k=50, filters={"source": value}) == []
    assert index.search("rent", top_k=50, filters={"heading": value}, mode="text") == []
    assert len(index) == size


@pytest.mark.parametrize("filters", [{"__class__": "x"}, {"vector": "x"}, {"page": "1 OR 1=1"}])
def test_hostile_filter_keys_are_refused(index, filters):
    with pytest.raises(InputError, match="filter"):
        index.search("rent", top_k=1, filters=filters)


@pytest.mark.parametrize("query", ['rent AND ("', "text:rent^9 -", "* OR *", "\x00", "'; --"])
def test_odd_queries_are_only_words(index, query):
    index.search(query, top_k=3)


def test_an_index_of_another_encoder_is_refused(index, tmp_path, make_encoder):
    with pytest.raises(InputError, match="another encoder"):
        Index.open(tmp_path / "index", make_encoder(salt="b"))


def test_a_folder_with_other_things_is_not_taken_for_an_index(tmp_path, encoder):
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(InputError, match="not an empty folder"):
        Index.open(tmp_path, encoder)
    with pytest.raises(InputError, match="no index here"):
        Index.open(tmp_path / "new", encoder, create=False)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("meta", ["{", "[]", '{"format": 1}', None])
def test_a_damaged_index_is_refused(index, tmp_path, encoder, meta):
    path = tmp_path / "index" / "index.json"
    path.write_text(meta or json.dumps(json.loads(path.read_text()) | {"format": 99}))
    with pytest.raises(InputError, match="build the index anew"):
        Index.open(tmp_path / "index", encoder)


def test_an_empty_index_finds_nothing(tmp_path, encoder):
    assert Index.open(tmp_path / "index", encoder).search("rent", top_k=3) == []


def test_threads_that_add_the_same_document_add_it_once(tmp_path, encoder, documents):
    index = Index.open(tmp_path / "index", encoder, max_chars=200)
    threads = [threading.Thread(target=index.add, args=(documents[0],)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = index.search("the agreement", top_k=100, mode="vector")
    assert len({citation.chunk for citation in found}) == len(found) == len(index)


def test_a_bad_file_does_not_harm_the_others(tmp_path, encoder, settings):
    folder = tmp_path / "contracts"
    folder.mkdir()
    (folder / "good.txt").write_text(LEASE)
    (folder / "bad.pdf").write_bytes(b"\x7fELF" + bytes(200))
    (folder / ".hidden").write_text("x")
    store = FileDocumentStore(settings.documents_dir)
    retriever = Retriever(encoder, settings, store)
    built = retriever.build_index([folder, tmp_path / "missing.txt"], "leases")
    assert built.path == settings.indexes_dir / "leases"
    assert list(built.documents.values()) == ["good.txt"]
    assert sorted(built.failed) == [str(folder / "bad.pdf"), str(tmp_path / "missing.txt")]
    assert store.get(next(iter(built.documents))).source == "good.txt"
    assert retriever.build_index([folder / "good.txt"], "leases").chunks == 0

    found = retriever.search_index("leases", "rent of the tenant", top_k=3)
    assert "rent" in found[0].text
    assert found == retriever.search_index(built.path, "rent of the tenant", top_k=3)
    few = retriever.search_index(
        "leases", "rent", top_k=3, budget_tokens=3, count_tokens=lambda text: len(text.split())
    )
    assert sum(len(citation.text.split()) for citation in few) <= 3


@pytest.mark.parametrize("name", ["..", "", "A", "a b", "x" * 65, "a.b"])
def test_what_is_no_name_is_refused(encoder, settings, name):
    retriever = Retriever(encoder, settings, FileDocumentStore(settings.documents_dir))
    with pytest.raises(InputError, match="not an index's name"):
        retriever.search_index(name, "rent", top_k=1)


def test_a_missing_index_is_named(encoder, settings):
    retriever = Retriever(encoder, settings, FileDocumentStore(settings.documents_dir))
    with pytest.raises(InputError, match="no index here"):
        retriever.search_index("nowhere", "rent", top_k=1)
    with pytest.raises(InputError, match="no file to index"):
        retriever.build_index([], "nowhere")
