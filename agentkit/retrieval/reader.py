"""The child process that reads one file: `python -m agentkit.retrieval.reader`.

Arguments: path, name, text limit (characters), memory limit (bytes), seconds. It writes one JSON
object to standard output: `{"document": ...}` or `{"error": {...}}`. Whatever else goes wrong
ends it with a traceback and a status other than 0, which its parent reports.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import sys
from dataclasses import replace
from pathlib import Path

from agentkit.errors import DocumentError
from agentkit.types import Document

OUT_OF_MEMORY = 77


def limit_resources(memory: int, seconds: float) -> None:
    """Limit this process's address space (bytes) and processor time (seconds)."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    whole = int(seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (whole, whole + 1))


def read_document(data: bytes, name: str, *, max_chars: int) -> Document:
    """The document in `data`, a file called `name`.

    Raises:
        DocumentError: it cannot be read, or holds more than `max_chars` characters.
    """
    from agentkit.retrieval.decoding import without_controls
    from agentkit.retrieval.draft import finish
    from agentkit.retrieval.formats import DOCX, HTML, MARKDOWN, PDF, detect_format

    if not data.strip(b" \t\r\n\x0b\x0c\x00"):
        raise DocumentError(
            "the file is empty", where=name, hint="give a document that has text in it"
        )
    media_type, warnings = detect_format(data, name)
    if media_type == PDF:
        from agentkit.retrieval.read_pdf import read_pdf

        draft = read_pdf(data, name)
    elif media_type == DOCX:
        from agentkit.retrieval.read_docx import read_docx

        draft = read_docx(data, name)
    elif media_type == HTML:
        from agentkit.retrieval.read_html import read_html

        draft = read_html(data, name)
    else:
        from agentkit.retrieval.decoding import decode
        from agentkit.retrieval.read_text import markdown_draft, plain_draft

        text, decoding_warnings = decode(data, where=name)
        warnings += decoding_warnings
        draft = markdown_draft(text) if media_type == MARKDOWN else plain_draft(text)
    if len(draft.text) > max_chars:
        raise DocumentError(
            f"it holds {len(draft.text):,} characters of text",
            where=name,
            hint=f"at most {max_chars:,} are read; split it",
        )
    text, cleaning_warnings = without_controls(draft.text)  # as long: offsets stay
    draft = replace(draft, text=text).with_warnings((*warnings, *cleaning_warnings))
    return finish(draft, source=name)


def main(arguments: list[str]) -> int:
    path, name, max_chars, memory, seconds = arguments
    limit_resources(int(memory), float(seconds))
    # A library that prints must not spoil the answer.
    answer = os.dup(1)
    os.dup2(2, 1)
    # One short-lived process builds one tree of objects: collecting cycles would only cost time.
    gc.disable()
    try:
        result = _answer(Path(path), name, int(max_chars))
    except MemoryError:
        return OUT_OF_MEMORY
    with os.fdopen(answer, "wb") as out:
        out.write(result)
    return 0


def _answer(path: Path, name: str, max_chars: int) -> bytes:
    from agentkit.retrieval.codec import document_to_json

    try:
        document = read_document(path.read_bytes(), name, max_chars=max_chars)
    except DocumentError as error:
        value = {"error": {"what": error.what, "where": error.where, "hint": error.hint}}
    else:
        value = {"document": document_to_json(document)}
    return json.dumps(value, ensure_ascii=True, separators=(",", ":")).encode("ascii")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
