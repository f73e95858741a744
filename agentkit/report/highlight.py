"""A document's text as HTML with every quote marked at its place.

Quotes may overlap, so the text is cut at every boundary and each piece names all the places that
cover it. Taking the tags away and decoding the character references gives the text back, character
for character.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

MAX_LABELS = 6
"""So many are spelled out at a piece; a place may be quoted a hundred times."""

KINDS = ("contradicted", "entailed", "clause", "fact", "task")
"""What a place was quoted for, the strongest colour first."""


@dataclass(frozen=True, slots=True)
class Place:
    """A stretch of the text that something quotes."""

    id: str
    start: int
    end: int
    kinds: tuple[str, ...]
    """Of `KINDS`, in that order."""
    labels: tuple[str, ...]
    """What quotes it, in words."""


@dataclass(frozen=True, slots=True)
class Mention:
    """One quoting of a place."""

    start: int
    end: int
    kind: str
    label: str


def places(mentions: Iterable[Mention]) -> dict[tuple[int, int], Place]:
    """One place for each distinct stretch, by `(start, end)`, numbered in reading order."""
    kinds: defaultdict[tuple[int, int], set[str]] = defaultdict(set)
    labels: defaultdict[tuple[int, int], dict[str, None]] = defaultdict(dict)
    for mention in mentions:
        if mention.start < mention.end:
            kinds[mention.start, mention.end].add(mention.kind)
            labels[mention.start, mention.end][mention.label] = None
    return {
        stretch: Place(
            id=f"p{number}",
            start=stretch[0],
            end=stretch[1],
            kinds=tuple(kind for kind in KINDS if kind in kinds[stretch]),
            labels=tuple(labels[stretch]),
        )
        for number, stretch in enumerate(sorted(kinds))
    }


def render(
    text: str,
    quoted: Iterable[Place],
    *,
    headings: Iterable[tuple[int, int]] = (),
    pages: Sequence[int] = (),
    anchors: Iterable[int] = (),
) -> Markup:
    """`text` escaped, with `<mark>` around quoted pieces and `<b>` around headings.

    An empty anchor stands where a place begins (its id) and at each offset of `anchors` (`o` and
    the offset), and an empty page mark where a page begins.

    A piece's classes name the places that cover it, so that following a link to a place can light
    all of its pieces.
    """
    begins: defaultdict[int, list[Place]] = defaultdict(list)
    ends: defaultdict[int, list[Place]] = defaultdict(list)
    for place in quoted:
        begins[place.start].append(place)
        ends[place.end].append(place)
    titles = [(start, end) for start, end in headings if start < end]
    title_edges = {edge for title in titles for edge in title}
    title_starts: Mapping[int, int] = dict(titles)
    page_numbers = {start: number for number, start in enumerate(pages, start=1)}
    offsets = set(anchors)

    edges = {0, len(text), *begins, *ends, *title_edges, *page_numbers, *offsets}
    cuts = sorted(edge for edge in edges if 0 <= edge <= len(text))
    active: dict[str, Place] = {}
    title_end = 0
    out: list[str] = []
    for position, start in enumerate(cuts):
        if number := page_numbers.get(start):
            out.append(f'<i class="page" data-page="{number}"></i>')
        if start in offsets:
            out.append(f'<a class="at" id="o{start}"></a>')
        for place in ends[start]:
            active.pop(place.id, None)
        for place in begins[start]:
            active[place.id] = place
            out.append(f'<a class="at" id="{place.id}"></a>')
        title_end = max(title_end, title_starts.get(start, 0))
        if position + 1 < len(cuts):
            piece = _escaped(text[start : cuts[position + 1]])
            out.append(_piece(piece, list(active.values()), title=start < title_end))
    return Markup("".join(out))


def _piece(piece: str, covering: Sequence[Place], *, title: bool) -> str:
    if title:
        piece = f"<b>{piece}</b>"
    if not covering:
        return piece
    kind = next(kind for kind in KINDS if any(kind in place.kinds for place in covering))
    labels = list(dict.fromkeys(label for place in covering for label in place.labels))
    if len(labels) > MAX_LABELS:
        labels[MAX_LABELS:] = [f"{len(labels) - MAX_LABELS} more"]
    classes = " ".join(place.id for place in covering)
    deep = " deep" if len(covering) > 1 else ""
    return (
        f'<mark class="k-{kind}{deep} {classes}" title="{escape(" · ".join(labels))}">'
        f"{piece}</mark>"
    )


def _escaped(text: str) -> str:
    # A parser turns a bare carriage return into a line feed; as a reference it stays itself.
    return str(escape(text)).replace("\r", "&#13;")
