"""What a run is given, checked against what its workflow asks for."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from agentkit.errors import InputError
from agentkit.types import Document, DocumentStore, Json
from agentkit.workflow.limits import plain
from agentkit.workflow.records import document_reference, is_document_reference
from agentkit.workflow.spec import InputSpec, WorkflowSpec

Reader: TypeAlias = Callable[[Any], Any]
"""Turns what was given (such as a path) into a `Document` or plain data."""


def prepare(
    spec: WorkflowSpec,
    given: Mapping[str, Any],
    documents: DocumentStore,
    readers: Mapping[str, Reader],
) -> dict[str, Json]:
    """Every input of the workflow with its value as plain JSON. Raises `InputError`."""
    for name in given:
        if name not in spec.inputs:
            near = difflib.get_close_matches(name, list(spec.inputs), n=1)
            there = ", ".join(spec.inputs) or "none"
            raise InputError(
                f"workflow {spec.name!r} has no input {name!r}",
                hint=f"did you mean {near[0]!r}?" if near else f"it takes: {there}",
            )
    values: dict[str, Json] = {}
    for name, entry in spec.inputs.items():
        value = given.get(name, entry.default)
        if value is None:
            if entry.must_be_given:
                raise InputError(
                    f"workflow {spec.name!r} needs the input {name!r} ({entry.type})",
                    hint=entry.description or f"give {name}",
                )
            values[name] = None
            continue
        values[name] = _value(name, entry, value, documents, readers.get(entry.type))
    return values


def _value(
    name: str, entry: InputSpec, value: Any, documents: DocumentStore, reader: Reader | None
) -> Json:
    is_place = isinstance(value, Path) or (
        isinstance(value, str) and entry.type in ("document", "playbook")
    )
    if reader is not None and is_place:
        value = reader(value)
    if isinstance(value, Document):
        documents.put(value)
        value = document_reference(value)
    checks: Mapping[str, tuple[Callable[[Any], bool], str]] = {
        "document": (is_document_reference, "a Document, or a reference to one"),
        "playbook": (lambda v: isinstance(v, (Mapping, list)), "a playbook"),
        "text": (lambda v: isinstance(v, str), "text"),
        "number": (
            lambda v: isinstance(v, (int, float)) and not isinstance(v, bool),
            "a number",
        ),
        "boolean": (lambda v: isinstance(v, bool), "true or false"),
        "list": (lambda v: isinstance(v, (list, tuple)), "a list"),
        "json": (lambda v: True, "plain data"),
    }
    fits, needed = checks[entry.type]
    if not fits(value):
        raise InputError(f"input {name!r} must be {needed}, not {type(value).__name__}")
    try:
        return plain(value)
    except (TypeError, ValueError) as error:
        raise InputError(f"input {name!r}: {error}") from error
