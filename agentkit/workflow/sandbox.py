"""The Jinja environment of expressions: items only, metered operators, an allow-list of syntax."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jinja2 import StrictUndefined, Undefined, nodes
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from agentkit.workflow.functions import FILTERS, FUNCTIONS, TESTS
from agentkit.workflow.limits import ExpressionLimitError, checked_join, spend

BITS_LIMIT = 256
"""Of any whole number."""

ALLOWED: tuple[type[nodes.Node], ...] = (
    nodes.Const,
    nodes.Name,
    nodes.Getattr,
    nodes.Getitem,
    nodes.Slice,
    nodes.List,
    nodes.Tuple,
    nodes.Dict,
    nodes.Pair,
    nodes.Compare,
    nodes.Operand,
    nodes.And,
    nodes.Or,
    nodes.Not,
    nodes.CondExpr,
    nodes.Concat,
    nodes.Add,
    nodes.Sub,
    nodes.Mul,
    nodes.Div,
    nodes.FloorDiv,
    nodes.Mod,
    nodes.Pow,
    nodes.Neg,
    nodes.Pos,
    nodes.Filter,
    nodes.Test,
    nodes.Call,
    nodes.Keyword,
)
"""Every kind of node that an expression may have."""


class SandboxedItems(ImmutableSandboxedEnvironment):
    """Items only, metered operators, nothing but the listed filters, tests and functions."""

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def __init__(self) -> None:
        super().__init__(undefined=StrictUndefined, autoescape=False, optimized=False)
        self.filters = dict(FILTERS)
        self.tests = dict(TESTS)
        self.globals = dict(FUNCTIONS)

    def getattr(self, obj: Any, attribute: str) -> Any:
        return self.getitem(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        spend(1)
        if isinstance(obj, Undefined):
            str(obj)
        if isinstance(argument, str) and argument.startswith("__"):
            return self.undefined(f"the name {argument!r} is not accepted", exc=SecurityError)
        if isinstance(obj, Mapping):
            if isinstance(argument, str) and argument in obj:
                return obj[argument]
            known = ", ".join(list(map(str, obj))[:12]) or "nothing"
            return self.undefined(f"no {argument!r} here; there is: {known}")
        if isinstance(obj, (list, tuple, str)) and isinstance(argument, int):
            if -len(obj) <= argument < len(obj):
                return obj[argument]
            return self.undefined(f"no entry {argument} in a list of {len(obj)}")
        kind = "none" if obj is None else f"a {type(obj).__name__}"
        return self.undefined(f"no {argument!r} in {kind}")

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        for value in (left, right):
            if isinstance(value, Undefined):
                str(value)
        if operator == "+" and isinstance(left, str) and isinstance(right, str):
            return checked_join([left, right])
        if operator == "+" and isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)):
            spend(len(left) + len(right))
            return [*left, *right]
        if not isinstance(left, (int, float)) or not isinstance(right, (int, float)):
            raise TypeError(f"{operator} is for numbers")
        if operator == "**" and (
            abs(right) > BITS_LIMIT
            or (isinstance(left, int) and left.bit_length() * abs(right) > BITS_LIMIT)
        ):
            raise ExpressionLimitError("the power is too large")
        result = self.binop_table[operator](left, right)
        if isinstance(result, complex):
            raise ValueError("the result is not a real number")
        if isinstance(result, int) and result.bit_length() > BITS_LIMIT:
            raise ExpressionLimitError("the number is too large")
        return result


class ConcatAsFilter(NodeTransformer):
    """`a ~ b` becomes the metered filter `concat`, because Jinja's own has no limit."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802 - jinja's naming
        self.generic_visit(node)
        parts = nodes.List(node.nodes, lineno=node.lineno)
        return nodes.Filter(parts, "concat", [], [], None, None, lineno=node.lineno)
