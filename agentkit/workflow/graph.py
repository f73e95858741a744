"""Pictures of a workflow: Mermaid text, and a self-contained SVG.

The SVG is drawn in layers (Sugiyama, Tagawa and Toda, 1981): a step stands one layer right of the
last step it waits for, edges that skip layers get a place in each layer they pass, and each layer
is sorted by the mean place of its neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from xml.sax.saxutils import escape

from agentkit.workflow.program import Program
from agentkit.workflow.spec import StepSpec, WorkflowSpec

_WIDTH, _HEIGHT, _GAP_X, _GAP_Y, _MARGIN = 184, 56, 64, 22, 14
_LANE = 18
"""Height kept free where an edge passes a layer."""
_SWEEPS = 6
_STYLE = (
    ".ak-graph{font-family:ui-sans-serif,system-ui,-apple-system,'Segoe UI',sans-serif}"
    ".ak-graph .box{fill:#fff;stroke:#94a3b8;stroke-width:1.2}"
    ".ak-graph .set{stroke-dasharray:4 3;fill:#f8fafc}"
    ".ak-graph .stack{fill:#eef2f7;stroke:#cbd5e1}"
    ".ak-graph .skill{fill:#4f46e5}.ak-graph .human{fill:#d97706}.ak-graph .plain{fill:#94a3b8}"
    ".ak-graph .name{font-size:13px;font-weight:600;fill:#0f172a}"
    ".ak-graph .kind{font-size:11px;fill:#64748b}"
    ".ak-graph .edge{fill:none;stroke:#94a3b8;stroke-width:1.4}.ak-graph .tip{fill:#94a3b8}"
)


def to_mermaid(spec: WorkflowSpec) -> str:
    """A Mermaid flowchart, one line per node and edge. Raises `WorkflowError`."""
    program = Program.of(spec)
    lines = ["flowchart LR"]
    for name, step in program.spec.steps.items():
        label = f"<b>{name}</b><br/>{_mermaid_text(_kind(step))}"
        shape = ("[/", "/]") if step.set is not None else ("([", "])")
        lines.append(f'    {_id(name)}{shape[0]}"{label}"{shape[1]}')
        if _asks(step):
            lines.append(f'    {_id(name)}_approval{{{{"approval"}}}}')
            lines.append(f"    {_id(name)} --> {_id(name)}_approval")
    for before, after in program.edges():
        end = f"{_id(before)}_approval" if _asks(spec.steps[before]) else _id(before)
        arrow = "-. when .->" if spec.steps[after].when is not None else "-->"
        lines.append(f"    {end} {arrow} {_id(after)}")
    return "\n".join(lines) + "\n"


def to_svg(spec: WorkflowSpec) -> str:
    """An SVG element with its own style, no script and no reference. Raises `WorkflowError`."""
    program = Program.of(spec)
    placed = _layout(program)
    width = max(box.x for box in placed.boxes.values()) + _WIDTH + _MARGIN
    height = max(box.y for box in placed.boxes.values()) + _HEIGHT + _MARGIN
    height = max([height, *(y + _LANE for line in placed.lines for _, y in line)])
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="ak-graph" role="img" '
        f'width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}">',
        f"<title>{_xml(spec.name)}</title><style>{_STYLE}</style>",
    ]
    parts.extend(_edge(line) for line in placed.lines)
    parts.extend(_node(name, spec.steps[name], placed.boxes[name]) for name in program.steps)
    parts.append("</svg>")
    return "".join(parts)


@dataclass(frozen=True)
class _Box:
    x: float
    y: float


@dataclass(frozen=True)
class _Layout:
    boxes: Mapping[str, _Box]
    lines: list[list[tuple[float, float]]]
    """Points of each edge: out of one box, through its lanes, into the next."""


def _layout(program: Program) -> _Layout:
    depth: dict[str, int] = {}
    for name, step in program.steps.items():
        depth[name] = max((depth[need] + 1 for need in step.needs), default=0)
    layers: list[list[str]] = [[] for _ in range(max(depth.values()) + 1)]
    for name, layer in depth.items():
        layers[layer].append(name)
    chains: list[list[str]] = []
    links: list[tuple[str, str]] = []
    for before, after in program.edges():
        chain = [before]
        for layer in range(depth[before] + 1, depth[after]):
            lane = f"{before}>{after}>{layer}"
            layers[layer].append(lane)
            chain.append(lane)
        chain.append(after)
        chains.append(chain)
        links.extend(pairwise(chain))
    _untangle(layers, links)
    return _place(layers, chains)


def _untangle(layers: list[list[str]], links: list[tuple[str, str]]) -> None:
    left: dict[str, list[str]] = {}
    right: dict[str, list[str]] = {}
    for before, after in links:
        left.setdefault(after, []).append(before)
        right.setdefault(before, []).append(after)
    for sweep in range(_SWEEPS):
        forward = sweep % 2 == 0
        neighbours = left if forward else right
        for layer in layers if forward else layers[::-1]:
            place = {name: index for row in layers for index, name in enumerate(row)}
            order = {}
            for name in layer:
                near = neighbours.get(name, [])
                order[name] = (
                    sum(place[other] for other in near) / len(near) if near else place[name]
                )
            layer.sort(key=lambda name, order=order: order[name])  # type: ignore[misc]


def _place(layers: list[list[str]], chains: list[list[str]]) -> _Layout:
    def tall(name: str) -> int:
        return _LANE if ">" in name else _HEIGHT

    heights = [sum(map(tall, layer)) + _GAP_Y * (len(layer) - 1) for layer in layers]
    spots: dict[str, _Box] = {}
    for column, layer in enumerate(layers):
        y = _MARGIN + (max(heights) - heights[column]) / 2
        for name in layer:
            spots[name] = _Box(_MARGIN + column * (_WIDTH + _GAP_X), y)
            y += tall(name) + _GAP_Y
    lines = []
    for chain in chains:
        first, last = spots[chain[0]], spots[chain[-1]]
        points = [(first.x + _WIDTH, first.y + _HEIGHT / 2)]
        for lane in chain[1:-1]:
            points.append((spots[lane].x, spots[lane].y + _LANE / 2))
            points.append((spots[lane].x + _WIDTH, spots[lane].y + _LANE / 2))
        points.append((last.x - 7, last.y + _HEIGHT / 2))
        lines.append(points)
    return _Layout({name: box for name, box in spots.items() if ">" not in name}, lines)


def _edge(points: list[tuple[float, float]]) -> str:
    path = f"M{points[0][0]:.1f} {points[0][1]:.1f}"
    for (x0, y0), (x1, y1) in pairwise(points):
        bend = (x1 - x0) / 2
        path += f"C{x0 + bend:.1f} {y0:.1f} {x1 - bend:.1f} {y1:.1f} {x1:.1f} {y1:.1f}"
    x, y = points[-1]
    tip = f"M{x:.1f} {y - 4:.1f}L{x + 7:.1f} {y:.1f}L{x:.1f} {y + 4:.1f}Z"
    return f'<path class="edge" d="{path}"/><path class="tip" d="{tip}"/>'


def _node(name: str, step: StepSpec, box: _Box) -> str:
    def rect(kind: str, x: float, y: float, width: float, radius: float) -> str:
        return (
            f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{width}" height="{_HEIGHT}" '
            f'rx="{radius}"/>'
        )

    bar = "plain" if step.set is not None or step.skill == "base" else "skill"
    if _asks(step):
        bar = "human"
    text_x = box.x + 16
    stack = rect("box stack", box.x + 5, box.y + 5, _WIDTH, 8) if step.for_each is not None else ""
    hover = step.description or step.instruction or name
    return (
        f"<g><title>{_xml(hover)}</title>{stack}"
        f"{rect('box set' if step.set is not None else 'box', box.x, box.y, _WIDTH, 8)}"
        f"{rect(bar, box.x, box.y, 5, 2.5)}"
        f'<text class="name" x="{text_x:.1f}" y="{box.y + 24:.1f}">{_xml(_cut(name, 20))}</text>'
        f'<text class="kind" x="{text_x:.1f}" y="{box.y + 42:.1f}">'
        f"{_xml(_cut(_kind(step), 27))}</text></g>"
    )


def _kind(step: StepSpec) -> str:
    kind = "computed" if step.set is not None else f"skill: {step.skill}"
    extras = [
        word
        for word, there in (
            ("each", step.for_each is not None),
            ("if", step.when is not None),
            ("asks", _asks(step)),
        )
        if there
    ]
    return " · ".join([kind, *extras])


def _asks(step: StepSpec) -> bool:
    return step.on_uncertain == "human" and step.set is None


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _id(name: str) -> str:
    # Mermaid reads a bare `end` and some other words as its own.
    return f"s_{name}"


def _mermaid_text(text: str) -> str:
    return text.replace('"', "#quot;").replace("<", "#lt;").replace(">", "#gt;")


def _xml(text: str) -> str:
    printable = "".join(
        character if character.isprintable() or character == "\n" else " " for character in text
    )
    return escape(printable, {'"': "&quot;"})
