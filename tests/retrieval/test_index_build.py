"""An index that follows files: what changed is embedded, what is gone leaves, a crash harms not."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from agentkit.errors import InputError
from agentkit.retrieval.index import Index
from agentkit.retrieval.ledger import LEDGER
from agentkit.retrieval.loaders import document_from_text, load_document
from agentkit.retrieval.retriever import Retriever
from agentkit.retrieval.store import FileDocumentStore

CLAUSE = "{n}.{i} The {word} of contract {name} pays the fee number {i} within thirty days.\n\n"


def contract(name, *, clauses=6, word="tenant"):
    return f"1. Fees of {name}\n\n" + "".join(
        CLAUSE.format(n=1, i=i, name=name, word=word) for i in range(1, clauses + 1)
    )


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "contracts"
    folder.mkdir()
    for name in ("alpha", "beta"):
        (folder / f"{name}.txt").write_text(contract(name))
    return folder


@pytest.fixture
def retriever(encoder, settings):
    return Retriever(encoder, settings, FileDocumentStore(settings.documents_dir))


def sources(retriever, name="leases"):
    found = retriever.search_index(name, "the fee of the contract", top_k=200)
    return {citation.source for citation in found}


def test_only_changed_files_are_read_and_embedded(folder, retriever, encoder):
    first = retriever.build_index([folder], "leases")
    assert len(first.added) == 2
    assert first.chunks == len(retriever.open_index("leases"))
    calls = encoder.calls
    again = retriever.build_index([folder], "leases")
    assert (again.added, again.chunks, len(again.unchanged)) == ((), 0, 2)
    assert again.documents == first.documents
    assert encoder.calls == calls

    (folder / "beta.txt").write_text(contract("beta", word="landlord"))
    changed = retriever.build_index([folder], "leases")
    assert changed.added == (str(folder / "beta.txt"),)
    assert encoder.calls == calls + 1
    (first_hit, *_) = retriever.search_index("leases", "landlord", top_k=1, mode="text")
    assert first_hit.source == "beta.txt"
    beta = retriever.search_index("leases", "fee", top_k=200, filters={"source": "beta.txt"})
    assert beta
    assert all("landlord" in citation.text for citation in beta if "pays" in citation.text)


def test_a_file_that_is_gone_from_its_folder_leaves_the_index(folder, retriever, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text(contract("other"))
    retriever.build_index([folder, other], "leases")
    (folder / "alpha.txt").unlink()
    built = retriever.build_index([folder], "leases")
    assert built.dropped == (str(folder / "alpha.txt"),)
    assert sources(retriever) == {"beta.txt", "other.txt"}
    shutil.rmtree(folder)
    folder.mkdir()
    retriever.build_index([folder], "leases")
    assert sources(retriever) == {"other.txt"}


def test_a_text_that_two_files_hold_stays_until_both_are_gone(folder, retriever):
    (folder / "copy.txt").write_text(contract("alpha"))
    retriever.build_index([folder], "leases")
    (folder / "alpha.txt").unlink()
    retriever.build_index([folder], "leases")
    assert retriever.search_index("leases", "alpha", top_k=1, mode="text")
    (folder / "copy.txt").unlink()
    retriever.build_index([folder], "leases")
    assert not retriever.search_index("leases", "alpha", top_k=1, mode="text")


def test_a_file_that_became_unreadable_is_named_and_its_last_version_stays(folder, retriever):
    retriever.build_index([folder], "leases")
    (folder / "alpha.txt").write_bytes(b"\x7fELF" + bytes(500))
    built = retriever.build_index([folder], "leases")
    assert list(built.failed) == [str(folder / "alpha.txt")]
    assert "alpha.txt" in sources(retriever)


def test_the_build_says_what_became_of_each_file(folder, retriever):
    (folder / "empty.txt").write_text("")
    said = []
    retriever.build_index([folder], "leases", on_file=lambda *event: said.append(event))
    assert [(path.rsplit("/", 1)[1], state, n, total) for path, state, n, total in said] == [
        ("alpha.txt", "added", 1, 3),
        ("beta.txt", "added", 2, 3),
        ("empty.txt", "failed", 3, 3),
    ]


def test_a_removed_document_is_read_again_by_the_next_build(folder, retriever):
    built = retriever.build_index([folder], "leases")
    digest = next(iter(built.documents))
    retriever.open_index("leases").remove(digest)
    assert len(sources(retriever)) == 1
    assert len(retriever.build_index([folder], "leases").added) == 1
    assert len(sources(retriever)) == 2


@pytest.mark.parametrize("text", ["{", "[]", '{"format":9}', '{"format":1,"files":{"/a":{}}}'])
def test_a_damaged_record_of_files_is_refused(folder, retriever, text):
    path = retriever.build_index([folder], "leases").path
    (path / LEDGER).write_text(text)
    with pytest.raises(InputError, match="build the index anew"):
        retriever.build_index([folder], "leases")


def test_statistics_count_what_the_index_holds(folder, retriever, encoder):
    path = retriever.build_index([folder], "leases").path
    stats = retriever.open_index("leases").stats()
    assert (stats.path, stats.documents, stats.files) == (path, 2, 2)
    assert stats.chunks == len(retriever.open_index("leases"))
    assert stats.bytes > 0
    assert stats.encoder == encoder.digest
    assert not stats.partitioned


def test_chunks_are_cited_without_the_headings_they_are_embedded_with(folder, retriever):
    retriever.build_index([folder / "alpha.txt"], "leases")
    document = load_document(folder / "alpha.txt")
    found = retriever.search_index("leases", "fees of alpha", top_k=20)
    assert found
    assert all(document.text[c.start : c.end] == c.text for c in found)


# ---------------------------------------------------------------- crashes and many processes

# Builds the index named in argv[1] from the folder argv[2]. `pause` in argv[3] stops for ever in
# the middle of embedding the last batch; `commit` stops between the commit and the record of it.
WORKER = """
import sys, threading
sys.path.insert(0, sys.argv[4])
from pathlib import Path
from conftest import HashingEncoder
from agentkit.retrieval import index as module
from agentkit.retrieval.index import Index
from agentkit.retrieval.index_build import build_index
from agentkit.retrieval.store import FileDocumentStore
from agentkit.settings import Settings
path, folder, stop = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]

def wait():
    print("here", flush=True)
    threading.Event().wait()

class Encoder(HashingEncoder):
    def encode(self, texts):
        vectors = super().encode(texts)
        if stop == "pause":
            wait()
        return vectors

if stop == "commit":
    module.write_ledger = lambda *_: wait()
if stop == "compact":
    module._MAX_WAITING = 0
    module.Index._needs_partitions = lambda self: wait()
index = Index.open(path, Encoder())
if stop == "run":
    print("here", flush=True)
settings = Settings(home=path.parent / "worker")
build_index(index, [folder], store=FileDocumentStore(settings.documents_dir), settings=settings)
"""


def start_worker(path, folder, stop):
    here = str(Path(__file__).parent)
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(path), str(folder), stop, here],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert worker.stdout.readline() == "here\n", worker.stderr.read()
    return worker


@pytest.mark.parametrize("stop", ["pause", "commit", "compact"])
def test_a_build_that_is_killed_leaves_the_index_whole(folder, retriever, encoder, stop):
    path = retriever.build_index([folder], "leases").path
    size = len(retriever.open_index("leases"))
    (folder / "alpha.txt").write_text(contract("alpha", word="landlord"))
    (folder / "delta.txt").write_text(contract("delta"))
    (folder / "beta.txt").unlink()
    worker = start_worker(path, folder, stop)
    os.kill(worker.pid, signal.SIGKILL)
    worker.communicate()
    assert worker.returncode == -signal.SIGKILL

    index = Index.open(path, encoder, create=False)
    found = {mode: index.search("fee", top_k=200, mode=mode) for mode in ("vector", "text")}
    assert len(index) == len(found["vector"])
    names = {citation.source for citation in found["vector"]}
    words = {
        w
        for c in found["text"]
        for w in ("tenant", "landlord")
        if f"The {w} of contract alpha" in c.text
    }
    if stop == "pause":  # nothing was committed
        assert (len(index), names, words) == (
            size,
            {"alpha.txt", "beta.txt"},
            {"tenant"},
        )
    else:  # all of it was
        assert (names, words) == ({"alpha.txt", "delta.txt"}, {"landlord"})

    retriever.build_index([folder], "leases")
    assert sources(retriever) == {"alpha.txt", "delta.txt"}
    assert retriever.build_index([folder], "leases").added == ()
    chunks = index.search("fee", top_k=200, mode="vector")
    assert len({citation.chunk for citation in chunks}) == len(chunks)


def test_a_process_adds_files_while_others_search(folder, retriever, encoder, tmp_path):
    path = retriever.build_index([folder], "leases").path
    more = tmp_path / "more"
    more.mkdir()
    for number in range(2):
        (more / f"new{number}.txt").write_text(contract(f"new{number}"))
    worker = start_worker(path, more, "run")
    wrong = []
    done = threading.Event()
    old = {"alpha.txt", "beta.txt"}

    def query(index):
        while not done.is_set():
            for mode in ("hybrid", "vector", "text"):
                found = {c.source for c in index.search("fee", top_k=200, mode=mode)}
                if not old <= found:
                    wrong.append((mode, found))

    threads = [
        threading.Thread(target=query, args=(Index.open(path, encoder, create=False),))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    worker.communicate()
    done.set()
    for thread in threads:
        thread.join()
    assert worker.returncode == 0
    assert wrong == []
    assert sources(retriever) == old | {f"new{number}.txt" for number in range(2)}


def test_two_processes_build_one_index_and_both_finish(folder, tmp_path, encoder):
    path = tmp_path / "index"
    Index.open(path, encoder)
    workers = [start_worker(path, folder, "run") for _ in range(2)]
    for worker in workers:
        _, complaint = worker.communicate()
        assert worker.returncode == 0, complaint
    index = Index.open(path, encoder)
    found = index.search("fee", top_k=200, mode="vector")
    assert len({citation.chunk for citation in found}) == len(found) == len(index)
    assert len(index.documents()) == len(index.files()) == 2


def test_a_folder_left_by_a_crash_at_the_very_start_is_taken_up(tmp_path, encoder):
    path = tmp_path / "index"
    Index.open(path, encoder)
    (path / "index.json").unlink()
    index = Index.open(path, encoder)
    assert index.add(document_from_text(contract("alpha"))) > 0


def test_a_large_index_is_partitioned_and_finds_the_same(tmp_path, encoder, monkeypatch):
    monkeypatch.setattr("agentkit.retrieval.index.PARTITIONED_FROM", 300)
    monkeypatch.setattr("agentkit.retrieval.index._MAX_WAITING", 200)
    index = Index.open(tmp_path / "index", encoder, max_chars=100)
    names = [f"name{number}" for number in range(60)]
    index.exchange([document_from_text(contract(name), source=name) for name in names])
    before = index.search("contract name7", top_k=5, mode="vector")
    assert not index.stats().partitioned
    index.compact()
    stats = index.stats()
    assert (stats.partitioned, stats.waiting) == (True, 0)
    after = index.search("contract name7", top_k=5, mode="vector")
    assert [citation.chunk for citation in after] == [citation.chunk for citation in before]
    index.add(document_from_text(contract("zebra"), source="zebra"))
    assert index.search("zebra", top_k=1, mode="text")[0].source == "zebra"
