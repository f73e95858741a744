"""Expressions: sandboxed Jinja that gives values, not text.

A string that is wholly one `{{ expression }}` gives the expression's value; any other string is a
text with values in it. What an expression may do is decided on its syntax tree, by an allow-list of
node kinds, before anything is compiled: no statements, no calls except the functions listed in
`functions.py`, no underscore names. What remains has no loop and no attribute access at all (`a.b`
finds the item `b`, so a mapping's own key `items` or `values` is what it says), and every operation
that can grow a value is limited.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.environment import TemplateExpression
from jinja2.parser import Parser

from agentkit.errors import ExpressionError
from agentkit.types import Json
from agentkit.workflow.functions import FILTERS, FUNCTIONS, TESTS, text_of
from agentkit.workflow.limits import TEXT_LIMIT, checked_join, metered, plain
from agentkit.workflow.sandbox import ALLOWED, ConcatAsFilter, SandboxedItems
from agentkit.workflow.uses import Uses, uses_of

LENGTH_LIMIT = 4_000
"""Characters of one expression; a text around expressions may be longer."""
NESTING_LIMIT = 40
NAMES = ("inputs", "steps", "item", "index", "run")
"""What an expression can speak of."""

_FAILURES = (
    TemplateError,
    TypeError,
    ValueError,
    ArithmeticError,
    LookupError,
    AttributeError,
    RecursionError,
)


_ENVIRONMENT = SandboxedItems()


@dataclass(frozen=True)
class References:
    """What an expression speaks of, found without evaluating it."""

    names: frozenset[str] = frozenset()
    inputs: frozenset[str] = frozenset()
    steps: frozenset[str] = frozenset()
    uses: Uses = field(default_factory=Uses)
    """What is taken of the steps' outputs."""

    def __or__(self, other: References) -> References:
        return References(
            self.names | other.names,
            self.inputs | other.inputs,
            self.steps | other.steps,
            Uses(self.uses.whole | other.uses.whole, self.uses.fields | other.uses.fields),
        )


@dataclass(frozen=True)
class Expression:
    """A compiled value: an expression, a text, or a structure of them."""

    references: References
    where: str | None
    shown: str
    """What the user wrote, shortened, for messages."""
    _give: Callable[[Mapping[str, Json]], Any]
    _parts: tuple[Expression, ...] = ()

    def leaves(self) -> Iterator[Expression]:
        """The expressions inside a structure, or this one."""
        if not self._parts:
            yield self
        for part in self._parts:
            yield from part.leaves()

    def evaluate(self, names: Mapping[str, Json]) -> Json:
        """The value, as plain JSON. Raises `ExpressionError`."""
        try:
            with metered():
                return plain(self._give(names))
        except _FAILURES as error:
            what = getattr(error, "message", None) or str(error) or type(error).__name__
            raise ExpressionError(f"{self.shown}: {what}", where=self.where) from error


def compile_expression(text: str, *, where: str | None = None) -> Expression:
    """An expression written bare (`inputs.rules`) or as `{{ inputs.rules }}`.

    Raises `ExpressionError` if it is malformed or not allowed.
    """
    stripped = text.strip()
    if stripped.startswith("{{"):
        whole = _whole_expression(stripped, where)
        if whole is None:
            _refuse("one expression is needed here, not text", stripped, where)
        return _expression(whole, stripped, where)
    return _expression(_parse(stripped, where), stripped, where)


def compile_text(text: str, *, where: str | None = None) -> Expression:
    """A template that always gives text."""
    parts = list(_parts(text, where))
    return _text_expression(parts, text, where)


def compile_value(
    value: Json, *, where: Callable[[tuple[str | int, ...]], str | None] = lambda path: None
) -> Expression:
    """A structure whose strings are templates. `where` tells the place of a part by its path."""
    return _structure(value, (), where)


def _structure(
    value: Json, path: tuple[str | int, ...], where: Callable[[tuple[str | int, ...]], str | None]
) -> Expression:
    if isinstance(value, str):
        return _string(value, where(path))
    if isinstance(value, dict):
        entries = {key: _structure(entry, (*path, key), where) for key, entry in value.items()}
        return Expression(
            _union(entries.values()),
            where(path),
            "mapping",
            lambda names: {key: entry.evaluate(names) for key, entry in entries.items()},
            tuple(entries.values()),
        )
    if isinstance(value, list):
        parts = tuple(_structure(entry, (*path, index), where) for index, entry in enumerate(value))
        return Expression(
            _union(parts),
            where(path),
            "list",
            lambda names: [part.evaluate(names) for part in parts],
            parts,
        )
    return Expression(References(), where(path), str(value), lambda names: value)


def _union(parts: Any) -> References:
    found = References()
    for part in parts:
        found |= part.references
    return found


def _string(text: str, where: str | None) -> Expression:
    if "{" not in text:
        return Expression(References(), where, text, lambda names: text)
    stripped = text.strip()
    if stripped.startswith("{{") and stripped.endswith("}}"):
        whole = _whole_expression(stripped, where)
        if whole is not None:
            return _expression(whole, stripped, where)
    return compile_text(text, where=where)


def _text_expression(parts: list[str | Expression], text: str, where: str | None) -> Expression:
    def give(names: Mapping[str, Json]) -> str:
        return checked_join(
            [part if isinstance(part, str) else text_of(part.evaluate(names)) for part in parts]
        )

    references = _union(part for part in parts if isinstance(part, Expression))
    return Expression(references, where, _shown(text), give)


def _whole_expression(text: str, where: str | None) -> nodes.Expr | None:
    found = _nodes(text, where)
    if len(found) == 1 and not isinstance(found[0], nodes.TemplateData):
        return found[0]
    return None


def _parts(text: str, where: str | None) -> Iterator[str | Expression]:
    if "{" not in text:
        yield text
        return
    for node in _nodes(text, where):
        if isinstance(node, nodes.TemplateData):
            yield node.data
        else:
            yield _expression(node, text, where)
    if text.endswith("\n"):
        yield "\n"


def _nodes(text: str, where: str | None) -> list[nodes.Expr]:
    if len(text) > TEXT_LIMIT:
        _refuse("the text is too long", text, where)
    try:
        template = _ENVIRONMENT.parse(text)
    except (TemplateError, RecursionError) as error:
        _refuse(getattr(error, "message", None) or "nested too deeply", text, where, error)
    found: list[nodes.Expr] = []
    for statement in template.body:
        if not isinstance(statement, nodes.Output):
            _refuse(
                f"the statement {{% {type(statement).__name__.lower()} %}} is not accepted",
                text,
                where,
                hint="use an expression: {{ a if b else c }}",
            )
        found.extend(statement.nodes)
    return found


def _parse(text: str, where: str | None) -> nodes.Expr:
    if len(text) > LENGTH_LIMIT:
        _refuse(f"longer than {LENGTH_LIMIT:,} characters", text, where)
    try:
        parser = Parser(_ENVIRONMENT, text, state="variable")
        expression = parser.parse_expression()
        if not parser.stream.eos:
            _refuse(f"unexpected {parser.stream.current.value!r}", text, where)
    except (TemplateError, RecursionError) as error:
        _refuse(getattr(error, "message", None) or "nested too deeply", text, where, error)
    expression.set_environment(_ENVIRONMENT)
    return expression


def _expression(node: nodes.Expr, text: str, where: str | None) -> Expression:
    references = _check(node, text, where)
    node = ConcatAsFilter().visit(node)
    node.set_environment(_ENVIRONMENT)
    assign = nodes.Assign(nodes.Name("result", "store"), node, lineno=1)
    try:
        template = _ENVIRONMENT.from_string(nodes.Template([assign], lineno=1))
    except (TemplateError, RecursionError, SyntaxError, MemoryError, ValueError) as error:
        _refuse(getattr(error, "message", None) or "cannot be compiled", text, where, error)
    compiled = TemplateExpression(template, undefined_to_none=False)
    return Expression(references, where, _shown(text), lambda names: compiled(**names))


def _check(root: nodes.Expr, text: str, where: str | None) -> References:
    """Refuse what is not allowed; collect what is spoken of."""
    names: set[str] = set()
    inputs: set[str] = set()
    steps: set[str] = set()
    pending: list[tuple[nodes.Node, nodes.Node | None, int]] = [(root, None, 1)]
    count = 0
    while pending:
        node, parent, depth = pending.pop()
        count += 1
        if depth > NESTING_LIMIT or count > LENGTH_LIMIT:
            _refuse("nested too deeply", text, where)
        if not isinstance(node, ALLOWED):
            _refuse(f"{type(node).__name__.lower()} is not accepted", text, where)
        if isinstance(node, nodes.Name) and not _is_called(node, parent):
            names.add(_known(node.name, NAMES, "name", text, where))
            if node.name == "steps" and _constant_key(parent, node) is None:
                _refuse("steps needs a step's name after it: steps.NAME", text, where)
            key = _constant_key(parent, node)
            if key is not None and node.name in ("inputs", "steps"):
                (inputs if node.name == "inputs" else steps).add(key)
        elif isinstance(node, nodes.Filter):
            _known(node.name, FILTERS, "filter", text, where)
        elif isinstance(node, nodes.Test):
            _known(node.name, TESTS, "test", text, where)
        elif isinstance(node, nodes.Call):
            if not isinstance(node.node, nodes.Name):
                _refuse("only functions can be called, not values", text, where)
            _known(node.node.name, FUNCTIONS, "function", text, where)
        key = _key_of(node)
        if key is not None and key.startswith("_"):
            _refuse(f"the name {key!r} is not accepted", text, where)
        if getattr(node, "dyn_args", None) or getattr(node, "dyn_kwargs", None):
            _refuse("* and ** arguments are not accepted", text, where)
        pending.extend((child, node, depth + 1) for child in node.iter_child_nodes())
    uses = uses_of(root) if steps else Uses()
    return References(frozenset(names), frozenset(inputs), frozenset(steps), uses)


def _is_called(node: nodes.Node, parent: nodes.Node | None) -> bool:
    return isinstance(parent, nodes.Call) and parent.node is node


def _key_of(node: nodes.Node) -> str | None:
    if isinstance(node, nodes.Getattr):
        return node.attr
    if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const):
        return node.arg.value if isinstance(node.arg.value, str) else None
    return None


def _constant_key(parent: nodes.Node | None, node: nodes.Node) -> str | None:
    if isinstance(parent, (nodes.Getattr, nodes.Getitem)) and parent.node is node:
        return _key_of(parent)
    return None


def _known(name: str, table: Any, kind: str, text: str, where: str | None) -> str:
    if name not in table:
        near = difflib.get_close_matches(name, list(table), n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(sorted(table))}"
        _refuse(f"no {kind} {name!r}", text, where, hint=hint)
    return name


def _shown(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 80 else f"{line[:77]}..."


def _refuse(
    what: str,
    text: str,
    where: str | None,
    cause: BaseException | None = None,
    *,
    hint: str | None = None,
) -> NoReturn:
    raise ExpressionError(f"{_shown(text)}: {what}", where=where, hint=hint) from cause
