"""Is a skill's input or output schema one that can be understood and constrained to?"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from agentkit.errors import SkillError
from agentkit.skill.guarded_yaml import KeyPath, YamlSource, did_you_mean
from agentkit.types import Json

MAX_SCHEMA_DEPTH = 16
MAX_EXPANDED = 20_000

TYPES = ("array", "boolean", "integer", "null", "number", "object", "string")

_COUNTS = frozenset(
    ("minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties")
)
_BOUNDS = frozenset(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"))
_STRINGS = frozenset(("pattern", "format", "title", "description", "$schema", "$id", "$comment"))
_LISTS_OF_SCHEMAS = frozenset(("anyOf", "oneOf", "allOf", "prefixItems"))
_MAPS_OF_SCHEMAS = frozenset(("properties", "patternProperties", "$defs"))
_SCHEMAS = frozenset(("items", "additionalProperties"))
_VALUES = frozenset(("type", "enum", "const", "required", "uniqueItems", "$ref"))
_NOTES = frozenset(("default", "examples", "deprecated", "readOnly", "writeOnly"))
KEYWORDS = tuple(
    sorted(
        frozenset().union(
            _COUNTS,
            _BOUNDS,
            _STRINGS,
            _LISTS_OF_SCHEMAS,
            _MAPS_OF_SCHEMAS,
            _SCHEMAS,
            _VALUES,
            _NOTES,
        )
    )
)
_DEFS = "#/$defs/"


def check_schema(schema: Any, source: YamlSource, path: KeyPath) -> None:
    """Check a JSON Schema (2020-12, the part above) that stands at `path` of `source`.

    References are local (`#/$defs/NAME`) and must not lead back to themselves, so that what is
    generated is bounded. Keys that begin with `x-` are annotations.

    Raises `SkillError` at the key that is wrong.
    """
    _Checker(source, path, schema).check()


class _Checker:
    """Stateful only in what it looks at: one schema with its definitions."""

    def __init__(self, source: YamlSource, path: KeyPath, schema: Any) -> None:
        self._source = source
        self._path = path
        self._schema = schema
        defs = schema.get("$defs", {}) if isinstance(schema, Mapping) else {}
        self._defs: Mapping[str, Any] = defs if isinstance(defs, Mapping) else {}

    def check(self) -> None:
        self._check(self._schema, self._path, 1)
        sizes: dict[str, int] = {}
        for name in self._defs:
            if self._size(name, (), sizes) > MAX_EXPANDED:
                raise self._failure(
                    (*self._path, "$defs", name),
                    f"written out it has more than {MAX_EXPANDED:,} parts",
                )

    def _check(self, schema: Any, path: KeyPath, depth: int) -> None:
        if depth > MAX_SCHEMA_DEPTH:
            raise self._failure(path, f"schemas nested more than {MAX_SCHEMA_DEPTH} deep")
        if not isinstance(schema, Mapping):
            raise self._failure(path, "a schema must be a mapping", "for instance {type: string}")
        for key, value in schema.items():
            self._check_keyword(key, value, (*path, key), depth)
        declared = schema.get("properties")
        if isinstance(declared, Mapping) and schema.get("additionalProperties") is False:
            for name in schema.get("required", ()):
                if name not in declared:
                    raise self._failure(
                        (*path, "required"), f"{name!r} is required but not among the properties"
                    )

    def _check_keyword(self, key: str, value: Any, path: KeyPath, depth: int) -> None:
        if key.startswith("x-"):
            return
        if key not in KEYWORDS:
            raise self._failure(
                path, f"unknown schema keyword {key!r}", did_you_mean(key, KEYWORDS)
            )
        if key == "type":
            self._check_type(value, path)
        elif key == "$ref":
            self._check_ref(value, path)
        elif key == "enum":
            if not isinstance(value, list) or not value:
                raise self._failure(path, "enum must be a list of at least one value")
        elif key == "required":
            if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
                raise self._failure(path, "required must be a list of property names")
        elif key in _COUNTS:
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise self._failure(path, f"{key} must be a whole number that is not negative")
        elif key in _BOUNDS:
            if not isinstance(value, int | float) or isinstance(value, bool):
                raise self._failure(path, f"{key} must be a number")
            if key == "multipleOf" and value <= 0:
                raise self._failure(path, f"{key} must be above 0")
        elif key in _STRINGS:
            if not isinstance(value, str):
                raise self._failure(path, f"{key} must be a string")
            if key == "pattern":
                self._check_pattern(value, path)
        else:
            if key == "patternProperties" and isinstance(value, Mapping):
                for name in value:
                    self._check_pattern(name, (*path, name))
            for step, part in self._parts(key, value, path):
                self._check(part, step, depth + 1)

    def _parts(self, key: str, value: Any, path: KeyPath) -> Iterator[tuple[KeyPath, Any]]:
        if key in _SCHEMAS:
            if not isinstance(value, bool):
                yield path, value
        elif key in _LISTS_OF_SCHEMAS:
            if not isinstance(value, list) or not value:
                raise self._failure(path, f"{key} must be a list of schemas")
            yield from (((*path, index), part) for index, part in enumerate(value))
        elif key in _MAPS_OF_SCHEMAS:
            if not isinstance(value, Mapping):
                raise self._failure(path, f"{key} must map names to schemas")
            yield from (((*path, name), part) for name, part in value.items())

    def _check_type(self, value: Any, path: KeyPath) -> None:
        names = value if isinstance(value, list) else [value]
        for name in names or [value]:
            if not isinstance(name, str) or name not in TYPES:
                hint = did_you_mean(str(name), TYPES)
                raise self._failure(path, f"unknown type {name!r}", hint)

    def _check_pattern(self, value: str, path: KeyPath) -> None:
        try:
            re.compile(value)
        except (re.error, OverflowError, RecursionError) as error:
            raise self._failure(
                path,
                f"{value!r} is no regular expression: {error}",
                r"they are Python's: \d and \w are known, \p{...} is not",
            ) from error

    def _check_ref(self, value: Any, path: KeyPath) -> None:
        if not isinstance(value, str) or not value.startswith(_DEFS):
            raise self._failure(path, f"only references to {_DEFS}NAME are followed")
        if value.removeprefix(_DEFS) not in self._defs:
            raise self._failure(path, f"{value} does not exist")

    def _size(self, name: str, seen: tuple[str, ...], sizes: dict[str, int]) -> int:
        """Parts of a definition once its references are written out."""
        if name in seen:
            loop = " -> ".join((*seen, name))
            raise self._failure((*self._path, "$defs", name), f"a schema that holds itself: {loop}")
        if name not in sizes:
            references, parts = _references(self._defs.get(name))
            sizes[name] = parts + sum(self._size(ref, (*seen, name), sizes) for ref in references)
        return sizes[name]

    def _failure(self, path: KeyPath, what: str, hint: str | None = None) -> SkillError:
        return SkillError(what, where=self._source.where(path), hint=hint)


def _references(value: Any) -> tuple[list[str], int]:
    """Names of the definitions that `value` refers to, and how many parts it has itself."""
    references: list[str] = []
    parts = 0
    pending = [value]
    while pending:
        item = pending.pop()
        parts += 1
        if isinstance(item, Mapping):
            ref = item.get("$ref")
            if isinstance(ref, str):
                references.append(ref.removeprefix(_DEFS))
            pending.extend(item.values())
        elif isinstance(item, list):
            pending.extend(item)
    return references, parts


def with_choice(schema: Mapping[str, Json], field: str, choice: Json) -> dict[str, Json]:
    """An object's schema in which one property has been decided, and is therefore there."""
    required = [*schema.get("required", ())]
    if field not in required:
        required.append(field)
    properties = {**schema.get("properties", {}), field: {"const": choice}}
    return {**schema, "properties": properties, "required": required}
