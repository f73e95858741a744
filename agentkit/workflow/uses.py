"""Which steps' outputs an expression takes as they are, and of which it takes only named fields.

`steps.S.output.FIELD`, `steps.S | selectattr('output.FIELD')` and `steps.S | map(attribute=
'output.FIELD')` take a field: of an answer in free words there is none, so such an answer could
change nothing. Whatever else is done with `steps.S` counts as taking the output itself.
"""

from __future__ import annotations

from dataclasses import dataclass

from jinja2 import nodes

_OUTPUT = "output"


@dataclass(frozen=True)
class Uses:
    """What an expression takes of steps' outputs."""

    whole: frozenset[str] = frozenset()
    """Steps whose output itself may reach the expression's value."""
    fields: frozenset[tuple[str, str]] = frozenset()
    """Step and field, where a field is taken."""


def uses_of(root: nodes.Expr) -> Uses:
    """What an expression takes of the steps that it names."""
    parents: dict[int, nodes.Node] = {}
    pending: list[nodes.Node] = [root]
    steps: list[tuple[str, nodes.Node]] = []
    while pending:
        node = pending.pop()
        for child in node.iter_child_nodes():
            parents[id(child)] = node
            pending.append(child)
        name = _key(node)
        inner = getattr(node, "node", None)
        if name is not None and isinstance(inner, nodes.Name) and inner.name == "steps":
            steps.append((name, node))
    whole: set[str] = set()
    fields: set[tuple[str, str]] = set()
    for name, node in steps:
        taken = _taken(node, parents)
        if taken is None:
            whole.add(name)
        elif taken:
            fields.add((name, taken))
    return Uses(frozenset(whole), frozenset(fields))


def _taken(step: nodes.Node, parents: dict[int, nodes.Node]) -> str | None:
    """The field of the output that is taken; None for the output itself; empty for neither."""
    user = parents.get(id(step))
    if isinstance(user, nodes.Filter) and user.node is step:
        return _taken_by_filter(user)
    key = _key(user)
    if user is None or key is None or getattr(user, "node", None) is not step:
        return None
    if key != _OUTPUT:
        return ""  # its route, its skill, its citations
    user_of_output = parents.get(id(user))
    return _key(user_of_output) if getattr(user_of_output, "node", None) is user else None


def _taken_by_filter(filter_: nodes.Filter) -> str | None:
    """The field of the output without which a filter gives nothing."""
    given = [*filter_.args, *(pair.value for pair in filter_.kwargs)]
    if filter_.name not in ("selectattr", "map") or len(given) != 1:
        return None
    if filter_.name == "map" and not filter_.kwargs:
        return None  # a filter's name
    (path,) = given
    if not isinstance(path, nodes.Const) or not isinstance(path.value, str):
        return None
    top, _, field = path.value.partition(".")
    return field.partition(".")[0] or None if top == _OUTPUT else None


def _key(node: nodes.Node | None) -> str | None:
    if isinstance(node, nodes.Getattr):
        return node.attr
    if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const):
        return node.arg.value if isinstance(node.arg.value, str) else None
    return None
