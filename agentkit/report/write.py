"""The report's four files, each written whole or not at all."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from agentkit.errors import InputError, OutputError
from agentkit.report.build import verify
from agentkit.report.html import to_html
from agentkit.report.markdown import to_markdown
from agentkit.report.model import Report
from agentkit.types import Document

FILES = ("document.txt", "report.json", "report.md", "report.html")


def write_report(
    report: Report,
    document: Document,
    out_dir: Path,
    *,
    graph_svg: str | None = None,
    mermaid: str | None = None,
) -> dict[str, Path]:
    """Write `document.txt`, `report.json`, `report.md` and `report.html` into `out_dir`.

    `document.txt` holds exactly the text that all offsets count in, as UTF-8. All four are on disk
    under temporary names before the first takes its place, so a reader never sees half a file.
    Returns the files' paths by name.

    Raises OutputError when a quote is not the document's text (nothing is written then), and
    InputError when the folder cannot be written to.
    """
    verify(report, document)
    texts = {
        "document.txt": document.text,
        "report.json": to_json(report),
        "report.md": to_markdown(report, mermaid=mermaid),
        "report.html": to_html(report, document, graph_svg=graph_svg),
    }
    contents = {name: _encode(text, name) for name, text in texts.items()}
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        return _replace_all(contents, out_dir)
    except OSError as error:
        raise InputError(
            f"the report cannot be written: {error.strerror or error}",
            where=str(out_dir),
            hint="give --out a folder that can be written to",
        ) from error


def to_json(report: Report) -> str:
    """The text of `report.json`."""
    return json.dumps(report.as_json(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _encode(text: str, name: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise OutputError(
            f"the text cannot be written as UTF-8 at character {error.start}",
            where=name,
            hint="the document holds half of a surrogate pair; read it with its right encoding",
        ) from error


def _replace_all(contents: Mapping[str, bytes], folder: Path) -> dict[str, Path]:
    waiting: dict[str, Path] = {}
    try:
        for name, content in contents.items():
            waiting[name] = _write_aside(content, folder, name)
        written: dict[str, Path] = {}
        for name in contents:
            written[name] = folder / name
            waiting[name].replace(written[name])
            del waiting[name]
    finally:
        for path in waiting.values():
            path.unlink(missing_ok=True)
    _sync_folder(folder)
    return written


def _write_aside(content: bytes, folder: Path, name: str) -> Path:
    path = folder / f".{name}.{secrets.token_hex(6)}.part"
    try:
        with path.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        path.unlink(missing_ok=True)
        raise
    return path


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
