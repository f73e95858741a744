"""YAML in and out: plain JSON values, with the place of each one kept for error messages.

The file is read as a stream of parser events, so nothing is ever nested deeper in Python's own
stack, and tags, anchors and duplicate keys are met before any value is built. Plain scalars follow
the core schema of YAML 1.2 (https://yaml.org/spec/1.2.2/#103-core-schema).
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)
from ruamel.yaml.scalarstring import DoubleQuotedScalarString, LiteralScalarString

from agentkit.errors import WorkflowError
from agentkit.types import Json

MAX_BYTES = 1_000_000
MAX_DEPTH = 32
MAX_DIGITS = 300

ValuePath: TypeAlias = tuple[str | int, ...]
"""Keys and indexes from the top of the file down to a value."""
Position: TypeAlias = tuple[int, int]
"""Line and column, both from 1."""

_NULL = re.compile(r"null|Null|NULL|~|")
_TRUE = re.compile(r"true|True|TRUE")
_FALSE = re.compile(r"false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]+")
_OCTAL = re.compile(r"0o[0-7]+")
_HEX = re.compile(r"0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")


@dataclass(frozen=True, eq=False)
class Source:
    """Where a workflow came from: tells the place of each of its values.

    All sources are equal: two workflows that say the same are the same, wherever they stand.
    """

    name: str | None = None
    """The file's name; None for a workflow built in Python."""
    keys: Mapping[ValuePath, Position] = field(default_factory=dict)
    values: Mapping[ValuePath, Position] = field(default_factory=dict)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Source)

    def __hash__(self) -> int:
        return hash(Source)

    def where(self, path: Sequence[str | int], *, value: bool = False) -> str | None:
        """`file:line:column` of a key (or of its value); for Python, the dotted path.

        A path that is not in the file gives the place of its nearest known parent.
        """
        if self.name is None:
            return ".".join(map(str, path)) or None
        table = self.values if value else self.keys
        for end in range(len(path), -1, -1):
            position = table.get(tuple(path[:end]))
            if position is not None:
                return f"{self.name}:{position[0]}:{position[1]}"
        return f"{self.name}:1:1"


@dataclass(frozen=True)
class YamlFile:
    """Plain data and the place of each of its values."""

    data: Json
    source: Source


def load(path: Path) -> YamlFile:
    """Read a YAML file. Raises `WorkflowError` with `file:line:column`."""
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise WorkflowError(
                f"the file has {size:,} bytes", where=str(path), hint=f"at most {MAX_BYTES:,}"
            )
        raw = path.read_bytes()
    except OSError as error:
        raise WorkflowError(
            f"cannot read the file: {error.strerror}", where=str(path), hint="check the path"
        ) from error
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        column = error.start - (raw.rfind(b"\n", 0, error.start) + 1) + 1
        raise WorkflowError(
            "the file is not UTF-8", where=f"{path}:{line}:{column}", hint="save it as UTF-8"
        ) from error
    return loads(text, name=str(path))


def loads(text: str, *, name: str = "<string>") -> YamlFile:
    """Read YAML text. Raises `WorkflowError` with `name:line:column`."""
    if len(text) > MAX_BYTES:
        raise WorkflowError(
            f"{len(text):,} characters of YAML", where=name, hint=f"at most {MAX_BYTES:,}"
        )
    keys: dict[ValuePath, Position] = {(): (1, 1)}
    values: dict[ValuePath, Position] = {(): (1, 1)}
    builder = _Builder(name, keys, values)
    try:
        for event in _events(text):
            builder.take(event)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        what = " ".join(str(error.problem or error.context or "not YAML").split())
        raise WorkflowError(f"not valid YAML: {what}", where=place) from error
    except YAMLError as error:
        position = getattr(error, "position", None)
        place = name
        if isinstance(position, int):
            before = text[:position]
            column = position - (before.rfind("\n") + 1) + 1
            place = f"{name}:{before.count(chr(10)) + 1}:{column}"
        reason = getattr(error, "reason", None) or "not readable"
        raise WorkflowError(f"not valid YAML: {reason}", where=place) from error
    return YamlFile(builder.root, Source(name, keys, values))


def _events(text: str) -> Iterator[Any]:
    yield from YAML(typ="safe", pure=True).parse(io.StringIO(text))


class _Builder:
    """Stateful: grows a value from parser events, one open collection per level."""

    def __init__(
        self, name: str, keys: dict[ValuePath, Position], values: dict[ValuePath, Position]
    ) -> None:
        self.name = name
        self.root: Json = None
        self._keys = keys
        self._values = values
        self._open: list[tuple[dict[str, Json] | list[Json], ValuePath]] = []
        self._key: list[str | None] = []
        self._documents = 0

    def take(self, event: Any) -> None:
        if isinstance(event, DocumentStartEvent):
            self._documents += 1
            if self._documents > 1:
                self._fail(event, "a second document", "one file holds one workflow")
        elif isinstance(event, AliasEvent):
            self._fail(event, f"an alias (*{event.anchor})", "write the value out")
        elif isinstance(event, (MappingEndEvent, SequenceEndEvent)):
            self._open.pop()
            self._key.pop()
        elif isinstance(event, (ScalarEvent, MappingStartEvent, SequenceStartEvent)):
            self._node(event)

    def _node(self, event: Any) -> None:
        if getattr(event, "anchor", None):
            self._fail(event, f"an anchor (&{event.anchor})", "write the value out")
        if getattr(event, "tag", None) is not None and event.tag != "!":
            self._fail(event, f"a tag ({event.tag})", "only plain values are read")
        expects_key = bool(self._open) and isinstance(self._open[-1][0], dict)
        if expects_key and self._key[-1] is None:
            self._take_key(event)
            return
        path = self._path()
        if path:
            self._values[path] = _position(event)
            self._keys.setdefault(path, _position(event))
        if isinstance(event, ScalarEvent):
            self._place(self._scalar(event))
            return
        if len(self._open) >= MAX_DEPTH:
            self._fail(event, f"nested deeper than {MAX_DEPTH} levels", "flatten it")
        container: dict[str, Json] | list[Json] = {} if isinstance(event, MappingStartEvent) else []
        self._place(container)
        self._open.append((container, path))
        self._key.append(None)

    def _take_key(self, event: Any) -> None:
        if not isinstance(event, ScalarEvent):
            self._fail(event, "a key that is not text", "use a plain name")
        key = self._scalar(event)
        if not isinstance(key, str):
            self._fail(event, f"the key {event.value!r} is not text", "put it in quotes")
        container, path = self._open[-1]
        if key in container:
            line, column = self._keys[(*path, key)]
            self._fail(
                event, f"the key {key!r} occurs twice", f"first at line {line}, column {column}"
            )
        self._keys[(*path, key)] = _position(event)
        self._key[-1] = key

    def _path(self) -> ValuePath:
        if not self._open:
            return ()
        container, path = self._open[-1]
        if isinstance(container, list):
            return (*path, len(container))
        return (*path, self._key[-1] or "")

    def _place(self, value: Json) -> None:
        if not self._open:
            self.root = value
            return
        container = self._open[-1][0]
        if isinstance(container, list):
            container.append(value)
        else:
            container[self._key[-1] or ""] = value
            self._key[-1] = None

    def _scalar(self, event: Any) -> Json:
        text: str = event.value
        if any("\ud800" <= character <= "\udfff" for character in text):
            self._fail(event, "half of a surrogate pair", "write the character itself")
        if event.style is not None and event.style != "":
            return text
        if event.tag == "!":
            return text
        if _INT.fullmatch(text) and len(text) > MAX_DIGITS:
            self._fail(event, f"a number of {len(text)} digits", "put it in quotes")
        return plain_scalar(text)

    def _fail(self, event: Any, what: str, hint: str) -> NoReturn:
        line, column = _position(event)
        raise WorkflowError(
            f"{what} is not accepted", where=f"{self.name}:{line}:{column}", hint=hint
        )


def _position(event: Any) -> Position:
    return event.start_mark.line + 1, event.start_mark.column + 1


def plain_scalar(text: str) -> Json:
    """The value of an unquoted scalar. Infinities and NaN are not JSON and stay text."""
    if _NULL.fullmatch(text):
        return None
    if _TRUE.fullmatch(text):
        return True
    if _FALSE.fullmatch(text):
        return False
    if _INT.fullmatch(text):
        return int(text)
    if _OCTAL.fullmatch(text) or _HEX.fullmatch(text):
        return int(text, 0)
    if _FLOAT.fullmatch(text):
        number = float(text)
        return number if abs(number) != float("inf") else text
    return text


def dumps(data: Json) -> str:
    """Plain data as block-style YAML that `loads` reads back to the same value."""
    yaml = YAML()
    yaml.width = 100
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.allow_unicode = True
    stream = io.StringIO()
    yaml.dump(_styled(data), stream)
    return stream.getvalue()


def _styled(value: Json) -> Json:
    if isinstance(value, dict):
        return {_styled(key): _styled(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_styled(entry) for entry in value]
    if not isinstance(value, str):
        return value
    if not isinstance(plain_scalar(value), str) or not value.isprintable():
        lines = value.split("\n")
        tidy = all(line.isprintable() and line == line.rstrip() for line in lines)
        if len(lines) > 1 and tidy and lines[0] and not value.startswith(" "):
            return LiteralScalarString(value)
        return DoubleQuotedScalarString(value)
    return value
