"""Documents on disk."""

import json
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentkit.errors import DocumentError
from agentkit.retrieval.codec import document_from_json, document_to_json
from agentkit.retrieval.loaders import document_from_text
from agentkit.retrieval.store import FileDocumentStore


@pytest.fixture
def store(tmp_path):
    return FileDocumentStore(tmp_path / "documents")


def test_a_document_comes_back_as_it_was_put(store, agreement):
    document = document_from_text(agreement)
    digest = store.put(document)
    assert digest == document.digest
    assert digest in store
    assert store.get(digest) == document
    assert [path.name for path in store.directory.iterdir()] == [f"{digest}.json"]


@given(st.text(min_size=1).filter(lambda text: text.strip()))
def test_json_keeps_every_document(text):
    document = document_from_text(text)
    value = json.loads(json.dumps(document_to_json(document)))
    assert document_from_json(value, where="here") == document


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda value: value | {"text": value["text"] + " not"}, "the digest differs"),
        (lambda value: value | {"spans": [[0, 10**9]]}, "outside its text"),
        (lambda value: value | {"spans": [[0, "1"]]}, "damaged"),
        (lambda value: value | {"spans": [[0]]}, "damaged"),
        (lambda value: {k: v for k, v in value.items() if k != "source"}, "damaged"),
        (lambda value: value | {"format": 99}, "not a stored document"),
        (lambda value: [], "not a stored document"),
    ],
)
def test_a_changed_file_is_refused(store, agreement, change, message):
    digest = store.put(document_from_text(agreement))
    path = store.directory / f"{digest}.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(DocumentError, match=message):
        store.get(digest)


def test_another_document_under_the_name_is_refused(store, agreement):
    first = store.put(document_from_text(agreement))
    second = store.put(document_from_text("Another text."))
    (store.directory / f"{second}.json").replace(store.directory / f"{first}.json")
    with pytest.raises(DocumentError, match="another document"):
        store.get(first)


def test_a_truncated_file_is_refused(store, agreement):
    digest = store.put(document_from_text(agreement))
    path = store.directory / f"{digest}.json"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DocumentError, match="damaged"):
        store.get(digest)


@pytest.mark.parametrize("digest", ["../x", "", "A" * 64, "0" * 63, "0" * 64 + "\n"])
def test_what_is_no_digest_is_refused(store, digest):
    with pytest.raises(DocumentError, match="not a document's digest"):
        store.get(digest)


def test_a_missing_document_is_named(store):
    with pytest.raises(DocumentError, match="document 000000000000 is not in the store"):
        store.get("0" * 64)


def test_threads_that_put_the_same_document_leave_one_whole_file(store, agreement):
    document = document_from_text(agreement)
    threads = [threading.Thread(target=store.put, args=(document,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.get(document.digest) == document
    assert len(list(store.directory.iterdir())) == 1
