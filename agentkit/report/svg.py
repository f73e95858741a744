"""A drawing made safe to stand inside a page: shapes and text stay, everything active goes."""

from __future__ import annotations

import re

from lxml import etree

from agentkit.errors import OutputError

SVG = "http://www.w3.org/2000/svg"

_DRAWING = "svg g path rect circle ellipse line polyline polygon text tspan defs marker title desc"
_DRAWN = (
    "id d x y x1 y1 x2 y2 cx cy r rx ry dx dy points width height viewBox transform role "
    "preserveAspectRatio fill fill-opacity stroke stroke-width stroke-dasharray stroke-linecap "
    "stroke-linejoin stroke-opacity opacity text-anchor dominant-baseline font-family font-size "
    "font-style font-weight marker-start marker-mid marker-end markerWidth markerHeight "
    "markerUnits orient refX refY aria-label aria-hidden"
)
_ELEMENTS = frozenset(_DRAWING.split())
_ATTRIBUTES = frozenset(_DRAWN.split())


def clean_svg(source: str) -> str:
    """`source` with only drawing elements and drawing attributes left, ready to stand inline.

    Scripts, styles, links, images, foreign objects and event handlers are dropped, and so is any
    attribute that refers outside the drawing; ids get a prefix, so that they meet none of the
    page's. Raises OutputError if it is not an SVG document.
    """
    parser = etree.XMLParser(
        resolve_entities=False, no_network=True, remove_comments=True, remove_pis=True
    )
    try:
        root = etree.fromstring(source.encode("utf-8"), parser)
    except (etree.XMLSyntaxError, ValueError) as error:
        raise OutputError(f"the workflow's graph is not an SVG: {error}") from error
    if etree.QName(root).localname != "svg":
        raise OutputError("the workflow's graph is not an SVG")
    return str(etree.tostring(_copy(root), encoding="unicode"))


def _copy(element: etree._Element) -> etree._Element:
    name = etree.QName(element).localname
    copy = etree.Element(f"{{{SVG}}}{name}", nsmap={None: SVG})
    for key, value in element.attrib.items():
        if key in _ATTRIBUTES and _inside(str(value)):
            copy.set(key, _own(key, str(value)))
    copy.text = element.text
    for child in element:
        kept = isinstance(child.tag, str) and etree.QName(child).localname in _ELEMENTS
        if kept:
            clone = _copy(child)
            clone.tail = child.tail
            copy.append(clone)
    return copy


def _own(key: str, value: str) -> str:
    return f"graph-{value}" if key == "id" else re.sub(r"url\(\s*#", "url(#graph-", value)


def _inside(value: str) -> bool:
    """Whether a `url()` in an attribute, if there is one, points into the drawing itself."""
    squeezed = "".join(value.lower().split())
    return squeezed.count("url(") == squeezed.count("url(#") and "\\" not in value
