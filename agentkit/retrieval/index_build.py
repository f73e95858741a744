"""Files to an index that follows them: what changed is read and embedded, what is gone dropped."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from agentkit.errors import DocumentError, InputError
from agentkit.retrieval.index import Index
from agentkit.retrieval.ledger import IndexedFile
from agentkit.retrieval.loaders import load_document
from agentkit.settings import Settings
from agentkit.types import Document, DocumentStore

# So many characters of documents are embedded and committed together: some seconds of work, which
# is what a crash loses.
_COMMIT_CHARS = 500_000
# While a build goes on, its commits are taken into the indices as often as this.
_COMPACT_COMMITS = 20

FileState: TypeAlias = Literal["added", "unchanged", "failed"]
OnFile: TypeAlias = Callable[[str, FileState, int, int], None]
"""Called after each file: its path, what became of it, its number from 1, the number of files."""


@dataclass(frozen=True, slots=True)
class IndexBuild:
    """What a build did; one bad file does not harm the others."""

    path: Path
    documents: Mapping[str, str]
    """Digest to source of the documents that are in the index now, of the files given."""
    chunks: int
    """Chunks that were added."""
    failed: Mapping[str, DocumentError]
    """Path to error. What the index held of such a file before, it still holds."""
    added: tuple[str, ...] = ()
    """Paths of new and changed files."""
    unchanged: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    """Paths of files that are gone from the folders given."""


@dataclass(slots=True)
class _Batch:
    """Stateful: what waits for the next commit."""

    documents: list[Document] = field(default_factory=list)
    files: dict[str, IndexedFile] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return sum(len(document.text) for document in self.documents)


def build_index(
    index: Index,
    paths: Sequence[Path],
    *,
    store: DocumentStore,
    settings: Settings,
    on_file: OnFile | None = None,
) -> IndexBuild:
    """Bring the index up to date with the files, and store their documents.

    Folders are read through, in order of their paths, without hidden files. A file whose bytes are
    those that were indexed is not read again; a file that was indexed from one of the folders and
    is there no more is dropped. A changed file's old chunks leave in the commit that brings its new
    ones. A killed build keeps what it committed, and the next one goes on from there.

    Raises:
        InputError: there is nothing to index, or the index is damaged.
    """
    files = list(dict.fromkeys(path.absolute() for path in _files(paths)))
    known = index.files()
    folders = [path.absolute() for path in paths if path.is_dir()]
    present = set(map(str, files))
    gone = tuple(
        name
        for name in known
        if name not in present and any(Path(name).is_relative_to(folder) for folder in folders)
    )
    if not files and not gone:
        raise InputError("no file to index", hint="give documents or folders of documents")

    documents: dict[str, str] = {}
    failed: dict[str, DocumentError] = {}
    added: list[str] = []
    unchanged: list[str] = []
    batch = _Batch()
    chunks = commits = 0
    for number, path in enumerate(files, 1):
        name = str(path)
        state: FileState = "added"
        try:
            sha256 = _sha256(path, settings.document_max_bytes)
            old = known.get(name)
            if old is not None and old.sha256 == sha256:
                state = "unchanged"
                unchanged.append(name)
                documents[old.document] = old.source
            else:
                document = load_document(path, settings=settings)
                store.put(document)
                batch.documents.append(document)
                batch.files[name] = IndexedFile(sha256, document.digest, document.source)
                documents[document.digest] = document.source
                added.append(name)
        except DocumentError as error:
            state = "failed"
            failed[name] = error
        if batch.size >= _COMMIT_CHARS:
            chunks += index.exchange(batch.documents, files=batch.files)
            batch = _Batch()
            commits += 1
            if commits % _COMPACT_COMMITS == 0:
                index.compact()
        if on_file is not None:
            on_file(name, state, number, len(files))
    chunks += index.exchange(batch.documents, files=batch.files, gone=gone)
    index.compact()
    return IndexBuild(index.path, documents, chunks, failed, tuple(added), tuple(unchanged), gone)


def _sha256(path: Path, max_bytes: int) -> str:
    """Of the file's bytes; empty where `load_document` is to say what is wrong with it."""
    try:
        if not path.is_file() or path.stat().st_size > max_bytes:
            return ""
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError):
        return ""


def _files(paths: Sequence[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            for item in sorted(path.rglob("*")):
                hidden = any(part.startswith(".") for part in item.relative_to(path).parts)
                if item.is_file() and not hidden:
                    yield item
        else:
            yield path
