"""YAML 1.2 that is only data: no tags, no anchors, no duplicate keys, bounded in size and depth.

Every value keeps its place, so that a later check can say `file:line:column`.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamEndEvent,
)
from ruamel.yaml.nodes import ScalarNode

from agentkit.errors import InputError, SkillError
from agentkit.types import Json

KeyPath: TypeAlias = tuple[str | int, ...]

MAX_CHARACTERS = 512_000
MAX_DEPTH = 32
MAX_NODES = 50_000

_SURROGATE = re.compile("[\ud800-\udfff]")
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


@dataclass(frozen=True, slots=True)
class YamlSource:
    """A parsed file: its value, and where each key or list item of it begins."""

    value: Json
    file: str
    positions: Mapping[KeyPath, tuple[int, int]]
    """Path of keys and indices to 1-based line and column; `()` is the whole."""

    def where(self, path: KeyPath = ()) -> str:
        """`file:line:column` of the nearest place that exists on the way to `path`.

        Tokens of `path` that are no key or index there (pydantic names union members, say) are
        passed over.
        """
        known: KeyPath = ()
        for token in path:
            if (*known, token) in self.positions:
                known = (*known, token)
        line, column = self.positions.get(known, (1, 1))
        return f"{self.file}:{line}:{column}"

    def error(
        self, cause: ValidationError, kind: type[InputError], known_keys: tuple[str, ...] = ()
    ) -> InputError:
        """The first complaint of pydantic as one of ours, at the key that it is about.

        `known_keys` are what a misspelt key may have meant.
        """
        first = cause.errors(include_url=False)[0]
        path = tuple(first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        dotted = ".".join(str(token) for token in path if token != "")
        more = cause.error_count() - 1
        hint = None
        if first["type"] == "extra_forbidden":
            message = f"unknown key {path[-1]!r}"
            hint = did_you_mean(str(path[-1]), known_keys)
        elif first["type"] == "missing":
            message = f"{dotted!r} is missing"
        elif dotted:
            message = f"{dotted}: {message}"
        if more:
            message += f"; and {more} more"
        return kind(message, where=self.where(path), hint=hint)


def did_you_mean(word: str, known: tuple[str, ...]) -> str | None:
    """A hint that names the closest of `known`, or else all of them."""
    if not known:
        return None
    close = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {close[0]!r}?" if close else "known are: " + ", ".join(sorted(set(known)))


def parse_yaml(
    text: str, file: str, *, first_line: int = 1, error: type[InputError] = SkillError
) -> YamlSource:
    """Parse one YAML document into JSON values; an empty one gives None.

    Timestamps stay strings. Keys must be strings. `first_line` is the line of `file` on which
    `text` begins.

    Raises `error` with `file:line:column` for bad syntax, an explicit tag, an anchor or alias, a
    duplicate key, a number that JSON does not know, or more than `MAX_CHARACTERS`, `MAX_DEPTH` or
    `MAX_NODES`.
    """
    if len(text) > MAX_CHARACTERS:
        raise error(
            f"{len(text):,} characters of YAML; the limit is {MAX_CHARACTERS:,}", where=file
        )
    yaml = YAML(typ="safe", pure=True)
    builder = _Builder(yaml, file, first_line, error)
    try:
        value = builder.document(iter(yaml.parse(text)))
    except MarkedYAMLError as cause:
        mark = cause.problem_mark or cause.context_mark
        place = f"{file}:{mark.line + first_line}:{mark.column + 1}" if mark else file
        raise error(f"not valid YAML: {cause.problem or cause.context}", where=place) from cause
    except YAMLError as cause:
        raise error(f"not valid YAML: {' '.join(str(cause).split())}", where=file) from cause
    except (ValueError, AssertionError) as cause:
        # What the parser itself stumbles over: another version's directive, a code point that is
        # none, a number of thousands of digits.
        raise error(f"not valid YAML: {cause or 'a directive'}", where=file) from cause
    return YamlSource(value, file, builder.positions)


class _Builder:
    """Stateful: turns the parser's events into a value, and notes positions on the way."""

    def __init__(self, yaml: YAML, file: str, first_line: int, error: type[InputError]) -> None:
        self._yaml = yaml
        self._file = file
        self._first_line = first_line
        self._error = error
        self._nodes = 0
        self.positions: dict[KeyPath, tuple[int, int]] = {}

    def document(self, events: Iterator[Event]) -> Json:
        value: Json = None
        documents = 0
        for event in events:
            if isinstance(event, DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise self._failure(event, "more than one YAML document in one file")
                if event.version not in (None, (1, 2)) or event.tags:
                    raise self._failure(event, "YAML directives are not read", "remove the % lines")
                value = self._value(next(events), events, (), 1)
            elif isinstance(event, StreamEndEvent):
                break
        return value

    def _value(self, event: Event, events: Iterator[Event], path: KeyPath, depth: int) -> Json:
        self._nodes += 1
        self.positions.setdefault(path, self._place(event))
        if self._nodes > MAX_NODES:
            raise self._failure(event, f"more than {MAX_NODES:,} values")
        if depth > MAX_DEPTH:
            raise self._failure(event, f"nested more than {MAX_DEPTH} deep")
        if isinstance(event, AliasEvent):
            raise self._failure(event, "aliases (*name) are not read", "write the value out")
        self._refuse_anchor_and_tag(event)
        if isinstance(event, ScalarEvent):
            return self._scalar(event)
        if isinstance(event, SequenceStartEvent):
            items: list[Json] = []
            while not isinstance(event := next(events), SequenceEndEvent):
                items.append(self._value(event, events, (*path, len(items)), depth + 1))
            return items
        mapping: dict[str, Json] = {}
        while not isinstance(event := next(events), MappingEndEvent):
            key = self._key(event, mapping)
            self.positions[(*path, key)] = self._place(event)
            mapping[key] = self._value(next(events), events, (*path, key), depth + 1)
        return mapping

    def _key(self, event: Event, mapping: Mapping[str, Json]) -> str:
        if not isinstance(event, ScalarEvent):
            raise self._failure(event, "a key must be a string written out")
        self._refuse_anchor_and_tag(event)
        if event.value == "<<" and event.implicit[0]:
            raise self._failure(event, "merge keys (<<) are not read", "write the keys out")
        key: Any = self._scalar(event)
        if not isinstance(key, str):
            raise self._failure(event, f"a key must be a string, not {event.value!r}", "quote it")
        if key in mapping:
            raise self._failure(event, f"the key {key!r} occurs twice", "keep one of them")
        return key

    def _refuse_anchor_and_tag(self, event: Event) -> None:
        if getattr(event, "anchor", None) is not None:
            raise self._failure(event, "anchors (&name) are not read", "write the value out")
        tag = getattr(event, "tag", None)
        if tag is not None:
            raise self._failure(event, f"tags are not read: {tag}", "write plain data")

    def _scalar(self, event: ScalarEvent) -> Json:
        if not event.implicit[0]:
            return self._text(event)
        tag = str(self._yaml.resolver.resolve(ScalarNode, event.value, event.implicit))
        if tag == "tag:yaml.org,2002:null":
            return None
        if tag == "tag:yaml.org,2002:bool":
            return event.value.lower() == "true"
        if tag not in _NUMBERS:
            return self._text(event)
        try:
            number = self._yaml.constructor.construct_object(ScalarNode(tag, event.value))
        except ValueError as cause:
            raise self._failure(event, f"not a number: {event.value[:40]!r}", "quote it") from cause
        if isinstance(number, float) and not math.isfinite(number):
            raise self._failure(event, f"{event.value} is not a number that JSON knows")
        return number

    def _text(self, event: ScalarEvent) -> str:
        text: str = event.value
        if _SURROGATE.search(text) is None:
            return text
        try:  # JSON escapes a character beyond 16 bits as a pair of surrogates
            return text.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError as cause:
            raise self._failure(event, "half of a surrogate pair is no character") from cause

    def _place(self, event: Event) -> tuple[int, int]:
        mark = event.start_mark
        return mark.line + self._first_line, mark.column + 1

    def _failure(self, event: Event, what: str, hint: str | None = None) -> InputError:
        line, column = self._place(event)
        return self._error(what, where=f"{self._file}:{line}:{column}", hint=hint)
