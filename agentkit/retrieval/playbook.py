"""A playbook: the rules that documents are held against, one per Markdown list item.

```markdown
# Our rules
## Confidentiality (must)
- The receiving party keeps the information confidential.
- [may] It may share it with its advisers:
  - if they are bound by secrecy.
```

A rule's severity is the marker at its beginning (`[must]`, `(should)`, `**May**:`, `MUST:`), else
that of the nearest heading above it that ends in `(must)`, `(should)` or `(may)`, else `should`.
A nested item is part of the item that it stands in, unless it begins with a marker of its own:
then it is a rule by itself. An item that only introduces such rules ("Notices:") is no rule but
a heading to them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias, cast

from agentkit.errors import InputError
from agentkit.retrieval.read_text import front_matter_lines
from agentkit.types import Json

if TYPE_CHECKING:
    from markdown_it.tree import SyntaxTreeNode

Severity: TypeAlias = Literal["must", "should", "may"]
DEFAULT_SEVERITY: Severity = "should"
MAX_BYTES = 1_000_000
MAX_RULES = 1000
MAX_RULE_CHARS = 2000

_WORDS = "must|should|may"
_MARKER = re.compile(
    rf"\s*(?:\[(?P<a>{_WORDS})\]|\((?P<b>{_WORDS})\)|(?P<c>{_WORDS})\s*:)\s*[:–—-]?\s*",
    re.IGNORECASE,
)
_HEADING_MARKER = re.compile(rf"\s*[(\[](?P<a>{_WORDS})[)\]]\s*:?\s*$", re.IGNORECASE)
_CHECKBOX = re.compile(r"\s*\[[ xX]\]\s+")


@dataclass(frozen=True, slots=True)
class Rule:
    """A sentence that a document is held against."""

    id: str
    """`r1`, `r2`, ... in the order of the playbook."""
    text: str
    severity: Severity
    heading: tuple[str, ...]
    """The headings above it, outermost first, without their severity markers."""
    line: int
    """1-based line of the file."""

    def to_json(self) -> dict[str, Json]:
        return {
            "id": self.id,
            "text": self.text,
            "severity": self.severity,
            "heading": list(self.heading),
            "line": self.line,
        }


@dataclass(frozen=True, slots=True)
class Playbook:
    """Rules in the order of their file."""

    source: str
    digest: str
    """SHA-256 of the file's text, hex."""
    rules: tuple[Rule, ...]

    def to_json(self) -> dict[str, Json]:
        return {
            "source": self.source,
            "digest": self.digest,
            "rules": [rule.to_json() for rule in self.rules],
        }


def load_playbook(path: Path) -> Playbook:
    """The rules of a Markdown file.

    Raises:
        InputError: the file cannot be read, is not UTF-8, or holds no rule; `where` is
            `file:line`.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise InputError(
            f"the playbook cannot be read: {getattr(error, 'strerror', None) or error}",
            where=str(path),
            hint="give the path of a Markdown file",
        ) from error
    if len(data) > MAX_BYTES:
        raise InputError(
            f"the playbook is longer than {MAX_BYTES:,} bytes", where=str(path), hint="split it"
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(
            "the playbook is not UTF-8 text",
            where=f"{path}:{line}",
            hint="save it as UTF-8 Markdown",
        ) from error
    return playbook_from_text(text, source=path.name, where=str(path))


def playbook_from_text(text: str, *, source: str = "playbook", where: str = "") -> Playbook:
    """The rules of a Markdown text; `where` names it in errors.

    Raises:
        InputError: it holds no rule, an empty or overlong one, or too many.
    """
    from markdown_it import MarkdownIt
    from markdown_it.tree import SyntaxTreeNode

    where = where or source
    if not text.strip():
        raise InputError(
            "the playbook is empty", where=f"{where}:1", hint="write one rule per list item"
        )
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    skip = front_matter_lines(text)
    lines = text.split("\n")
    tree = SyntaxTreeNode(MarkdownIt("commonmark").parse("\n" * skip + "\n".join(lines[skip:])))
    rules = tuple(Rule(f"r{number}", *rule) for number, rule in enumerate(_rules(tree, where), 1))
    if not rules:
        raise InputError(
            "the playbook has no list item, so no rule",
            where=f"{where}:{len(text.rstrip().splitlines())}",
            hint='write each rule as a list item: "- The term is at most two years."',
        )
    if len(rules) > MAX_RULES:
        raise InputError(
            f"the playbook holds {len(rules)} rules",
            where=f"{where}:{rules[MAX_RULES].line}",
            hint=f"at most {MAX_RULES} are read; split it",
        )
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return Playbook(source, digest, rules)


_Found: TypeAlias = tuple[str, Severity, tuple[str, ...], int]


@dataclass(frozen=True, slots=True)
class _Scope:
    """What holds for the items at a place: headings above and the severity that they give."""

    heading: tuple[str, ...]
    severity: Severity


def _rules(tree: SyntaxTreeNode, where: str) -> Iterator[_Found]:
    path: list[tuple[int, str, Severity | None]] = []
    for node in tree.children:
        if node.type == "heading":
            level = int(node.tag[1:])
            while path and path[-1][0] >= level:
                path.pop()
            title = _plain(node)
            match = _HEADING_MARKER.search(title)
            severity = _severity(match["a"]) if match else None
            path.append((level, title[: match.start()].strip() if match else title, severity))
        else:
            given = [severity for _, _, severity in path if severity is not None]
            scope = _Scope(
                tuple(title for _, title, _ in path), given[-1] if given else DEFAULT_SEVERITY
            )
            for item in _items(node):
                yield from _item(item, scope, where)


def _items(node: SyntaxTreeNode) -> Iterator[SyntaxTreeNode]:
    """The list items in a block, not those within items."""
    if node.type == "list_item":
        yield node
    else:
        for child in node.children:
            yield from _items(child)


def _item(item: SyntaxTreeNode, scope: _Scope, where: str) -> Iterator[_Found]:
    line = item.map[0] + 1 if item.map else 1
    severity, own = _strip_marker(_own_text(item))
    inner = [nested for child in item.children for nested in _items(child)]
    alone = [_stands_alone(nested) for nested in inner]
    rule_severity = severity or scope.severity
    parts = [own]
    apart: list[_Found] = []
    introduces = own.endswith(":") and bool(inner) and all(alone)
    nested_scope = _Scope((*scope.heading, own.rstrip(": ")), rule_severity)
    for nested, is_alone in zip(inner, alone, strict=True):
        if is_alone:
            apart.extend(_item(nested, nested_scope if introduces else scope, where))
        else:
            parts.append(_whole_text(nested))
    text = " ".join(part for part in parts if part)
    if introduces:
        yield from apart
        return
    if not text:
        raise InputError(
            "a rule without words", where=f"{where}:{line}", hint="write it or remove the item"
        )
    if len(text) > MAX_RULE_CHARS:
        raise InputError(
            f"a rule of {len(text):,} characters",
            where=f"{where}:{line}",
            hint=f"a rule is one sentence, at most {MAX_RULE_CHARS:,} characters",
        )
    yield text, rule_severity, scope.heading, line
    yield from apart


def _stands_alone(item: SyntaxTreeNode) -> bool:
    """Does the item, or one within it, begin with a marker of its own?"""
    return _strip_marker(_own_text(item))[0] is not None or any(
        _stands_alone(nested) for child in item.children for nested in _items(child)
    )


def _own_text(item: SyntaxTreeNode) -> str:
    parts = (_plain(child) for child in item.children if not any(_items(child)))
    return " ".join(part for part in parts if part)


def _whole_text(item: SyntaxTreeNode) -> str:
    inner = (_whole_text(nested) for child in item.children for nested in _items(child))
    return " ".join(part for part in (_own_text(item), *inner) if part)


def _plain(node: SyntaxTreeNode) -> str:
    """The node's words without marks; a link is its text."""
    if node.type in ("softbreak", "hardbreak"):
        return " "
    if node.type in ("html_block", "html_inline"):
        return ""
    text = "".join(map(_plain, node.children)) if node.children else node.content
    return " ".join(text.split()) if node.type in ("paragraph", "heading") else text


def _strip_marker(text: str) -> tuple[Severity | None, str]:
    text = _CHECKBOX.sub("", text, count=1) if _CHECKBOX.match(text) else text
    match = _MARKER.match(text)
    if match is None:
        return None, text.strip()
    return _severity(match["a"] or match["b"] or match["c"]), text[match.end() :].strip()


def _severity(word: str) -> Severity:
    return cast(Severity, word.lower())
