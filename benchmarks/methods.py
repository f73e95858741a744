"""Ways to adapt compared on compliance-review: quality, size, training cost and inference cost.

Every method is trained on the same few rows of the skill's own data for the same minutes, with all
layers and with the upper third alone, each in a process of its own. Each starts from the task head
that was first trained alone on the frozen backbone, and is measured beside it: within minutes an
untrained head would decide the comparison, not the method. LoRA is trained once more with what
`layers: auto`, `size: auto` and `search` find; their probes come on top of the minutes. A method
whose folder is whole is not trained again, one that was cut off goes on; nor is it asked again what
it has answered by the same code.

Quality is that of whole documents that no training learnt from or tuned on, as served; intervals
are bootstraps over these documents, those of differences paired. Inference cost is that of the
engine, in turn with the bare backbone, as its share of that: for a document that is read for the
first time, and for one that the bare backbone has read before.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from math import prod
from pathlib import Path
from typing import Any, get_args

from common import Metric, arguments, finish, need
from evaluations import Kept, bounds, compared
from trainings import QUALITY, ROOT, SKILL, held_out, measured_on, record, source, trained

from agentkit.adapters.tensor_file import read_header
from agentkit.engine.engine import Engine
from agentkit.errors import MissingExtraError
from agentkit.evaluation.resampling import Figure
from agentkit.kit import Kit
from agentkit.pictures import picture
from agentkit.prompt import number_spans, skill_prompt
from agentkit.retrieval.loaders import document_from_text
from agentkit.settings import Settings
from agentkit.skill.folder import Skill, load_skill
from agentkit.training.layer_selection import Importance
from agentkit.training.spec import RATES, Method, load_train_spec
from agentkit.types import Request

FOLDERS = ROOT / "out" / "methods"
PICTURE = ROOT / "benchmarks" / "methods.svg"
SPARSE = "upper 1/3"
FINDS = ("lora auto", f"lora {SPARSE} size", "lora searched")
"""How the names begin of what finds layers or settings by itself."""
FROZEN: Method = "head"
BARE = "frozen with head"
ADDED = "accuracy over the frozen"
FIGURES = {
    "accuracy": "accuracy",
    ADDED: "over frozen",
    "macro_f1": "macro-F1",
    "evidence_map": "evidence mAP",
    "layers": "layers",
    "lowest_layer": "from",
    "parameters": "parameters",
    "bytes": "bytes",
    "training_seconds": "training, s",
    "peak_memory": "peak memory, GB",
    "cost_of_a_new_document": "cost, new document",
    "cost_of_a_read_document": "cost, read document",
}
"""What is measured of each, and how the table names it."""


FROZEN_HEAD = f"../../frozen-with-head/{SKILL.name}"
"""Where the other methods' folders find the head that was trained alone."""


@dataclass(frozen=True)
class Variant:
    """A method on some layers."""

    method: Method
    layers: str = "all"
    settings: dict[str, Any] = field(default_factory=dict)
    called: str = ""
    """Its name, where method, settings and layers are none."""

    @property
    def name(self) -> str:
        if self.called:
            return self.called
        kind = " ".join([self.method, *(str(value) for value in self.settings.values())])
        return f"{kind} {'all layers' if self.layers == 'all' else self.layers}"

    @property
    def folder(self) -> str:
        return self.name.replace(" ", "-").replace("/", "-")


def variants(minutes: float) -> Iterator[Variant]:
    yield Variant(FROZEN, called=BARE)
    both: tuple[Method, ...] = ("lora", "alora", "hybrid")
    for layers in ("all", SPARSE):
        yield from (Variant(method, layers) for method in both)
        for placement in ("houlsby", "pfeiffer"):
            yield Variant("bottleneck", layers, {"placement": placement})
    yield Variant("prefix")
    for importance in get_args(Importance):
        yield Variant("lora", "auto", {"importance": importance}, f"lora auto by {importance}")
    yield Variant("lora", SPARSE, {"size": "auto"}, f"lora {SPARSE} size auto")
    search = {"minutes": minutes, "layers": [SPARSE, "upper 1/2", "upper 2/3"]}
    yield Variant("lora", SPARSE, {"search": search}, "lora searched")


def main() -> int:
    parser = arguments(__doc__ or "")
    parser.add_argument("--minutes", type=float, default=2.5, help="of training, each")
    parser.add_argument("--documents", type=int, default=60, help="to train on")
    parser.add_argument("--tuning", type=int, default=10, help="documents to tune on")
    parser.add_argument("--held", type=int, default=16, help="documents to measure on")
    parser.add_argument("--rounds", type=int, default=2, help="of the timing in the engine")
    parser.add_argument("--characters", type=int, default=8000, help="of the document then read")
    parser.add_argument("--only", action="append", help="variants whose names hold this")
    parser.add_argument("--folders", type=Path, default=FOLDERS, help="where they are trained")
    parser.add_argument("--picture", type=Path, default=PICTURE)
    options = parser.parse_args()
    need(options.data_dir)
    chosen = [
        one
        for one in variants(options.minutes)
        if one.method == FROZEN or any(part in one.name for part in options.only or [""])
    ]
    folders = {
        one.name: trained(
            one.name, options.folders / one.folder, changes(one, options), options.data_dir
        )
        for one in chosen
    }
    with Kit() as kit:
        metrics = quality(kit, folders, options)
    costs = inference({name: load_skill(folder) for name, folder in folders.items()}, options)
    for name, folder in folders.items():
        found = record(folder)
        layers = found["layers"]["chosen"]
        metrics += [
            Metric(f"{name}, {figure}", value, unit)
            for figure, value, unit in (
                ("layers", len(layers), ""),
                *([("lowest_layer", layers[0], "")] if layers else []),
                *sizes(folder),
                ("training_seconds", found["seconds"], "s"),
                ("peak_memory", found["peak_memory_bytes"] / 1e9, "GB"),
                *((figure, value, "times the bare") for figure, value in costs[name].items()),
            )
        ]
    first = record(folders[BARE])
    metrics += [
        Metric("minutes of training each", options.minutes),
        Metric("rows", sum(one["train_rows"] for one in first["data"])),
    ]
    code = finish("methods", metrics, options.json)
    with suppress(MissingExtraError):
        draw(options.picture, by_variant([asdict(m) for m in metrics]))
    print("\n".join(table([asdict(m) for m in metrics])))
    return code


# ---------------------------------------------------------------- training


def changes(variant: Variant, options: Any) -> dict[str, Any]:
    """What differs from the skill's own train.yaml."""
    spec = load_train_spec(SKILL / "train.yaml")
    # The skill's own rate, as much above or below a method's default as it is for its method.
    rate = RATES[variant.method] * spec.rate / RATES[spec.method]
    return {
        "method": variant.method,
        "layers": variant.layers,
        "learning_rate": rate,
        "epochs": 1000 if variant.method != FROZEN else 40,
        "max_minutes": options.minutes,
        "pack_tokens": 1536,
        "packs_per_step": 1,
        "calibration": [],
        "data": [
            source(split="train_evidence") | {"limit": options.documents, "tuning": 0},
            measured_on(options.tuning, split="train_full_50"),
        ],
        **({} if variant.method == FROZEN else {"start_from": FROZEN_HEAD}),
        **variant.settings,
    }


def quality(kit: Kit, folders: Mapping[str, Path], options: Any) -> list[Metric]:
    """Figures of each as served, and what each adds to the frozen backbone with the same head."""
    skills = {
        name: kit.store.admit(load_skill(one, name=SKILL.name)) for name, one in folders.items()
    }
    rows = held_out(folders[BARE], options.data_dir, options.held)
    found = compared(
        kit,
        "held out",
        skills[BARE].manifest,
        rows,
        {
            name: Kept(kit, skill, folders[name].parent / "answers.jsonl")
            for name, skill in skills.items()
        },
    )
    metrics: list[Metric] = []
    for name, one in found.subjects.items():
        known = {figure: one.figures[figure] for figure in QUALITY}
        if less := one.differences.get("accuracy"):  # by how much the frozen one exceeds it
            ends = (less.value, less.high, less.low)
            known[ADDED] = Figure(*(None if end is None else 0.0 - end for end in ends))
        for figure, value in known.items():
            metrics += [Metric(f"{name}, {figure}", value.value)]
            metrics += bounds(f"{name}, {figure}", value)
    return [
        *metrics,
        Metric("questions", len(rows)),
        Metric("documents", found.documents),
    ]


def sizes(folder: Path) -> Iterator[tuple[str, float, str]]:
    """Of the adapter, or of the head where there is none."""
    weights = folder / "adapter_model.safetensors"
    if not weights.is_file():
        weights = folder / "head.safetensors"
    specs, _ = read_header(weights)
    yield "parameters", sum(prod(spec.shape) for spec in specs.values()), ""
    yield "bytes", weights.stat().st_size, ""


# ---------------------------------------------------------------- inference


def inference(skills: dict[str, Skill], options: Any) -> dict[str, dict[str, float]]:
    """By variant the median cost of the example's questions, as a share of the bare backbone's."""
    document = (ROOT / "examples" / "documents" / "nda.md").read_text("utf-8")
    text = document[: options.characters]
    lines = (ROOT / "examples" / "playbooks" / "nda.md").read_text("utf-8").splitlines()
    rules = [line[2:] for line in lines if line.startswith("- ")]
    bare = skills[BARE]
    seconds: dict[str, dict[str, list[float]]] = {
        name: {"cost_of_a_new_document": [], "cost_of_a_read_document": []} for name in skills
    }
    with Engine.open(Settings()) as engine:
        for skill in skills.values():
            engine.load(skill)
        number = 0
        for turn in range(options.rounds + 1):
            for name, skill in skills.items():
                for figure in seconds[name]:
                    number += 1  # no text comes twice: nothing of it is known
                    asked = requests(engine, skill, f"Copy {number}. {text}", rules)
                    if figure == "cost_of_a_read_document":
                        answered(engine, requests(engine, bare, f"Copy {number}. {text}", rules))
                    began = time.perf_counter()
                    answered(engine, asked)
                    if turn:  # the first is for warmth
                        seconds[name][figure].append(time.perf_counter() - began)
    medians = {
        name: {figure: statistics.median(taken) for figure, taken in of.items()}
        for name, of in seconds.items()
    }
    base = medians[BARE]["cost_of_a_new_document"]
    return {name: {f: value / base for f, value in of.items()} for name, of in medians.items()}


def requests(engine: Engine, skill: Skill, text: str, rules: Sequence[str]) -> list[Request]:
    spans = number_spans(document_from_text(text))
    prompts = [
        skill_prompt(engine.frame, skill.manifest, {"rule": rule, "document": text}, spans)
        for rule in rules
    ]
    return [Request(engine.encode(p), adapter=skill.digest, read=True) for p in prompts]


def answered(engine: Engine, asked: Sequence[Request]) -> None:
    for outcome in engine.run(asked):
        if isinstance(outcome, Exception):
            raise outcome


# ---------------------------------------------------------------- what is shown


def by_variant(metrics: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Figures by variant, in their order; the ends of an interval as `figure, low` and `high`."""
    found: dict[str, dict[str, float]] = {}
    for metric in metrics:
        name, _, figure = metric["name"].partition(", ")
        if figure:
            found.setdefault(name, {})[figure] = metric["value"]
    return found


def table(metrics: Sequence[dict[str, Any]]) -> list[str]:
    """A row for each variant, in markdown."""
    rows = [
        f"| method | {' | '.join(FIGURES.values())} |",
        f"|---|{'---|' * len(FIGURES)}",
    ]
    for name, figures in by_variant(metrics).items():
        cells = (with_interval(figures, figure) for figure in FIGURES)
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return rows


def with_interval(figures: Mapping[str, float], figure: str) -> str:
    """A figure as the table says it; nothing where there is none."""
    if figure not in figures:
        return ""
    ends = [figures[key] for end in ("low", "high") if (key := f"{figure}, {end}") in figures]
    interval = f" [{', '.join(map(shown, ends))}]" if ends else ""
    return shown(figures[figure]) + interval


def shown(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def draw(path: Path, found: dict[str, dict[str, float]]) -> None:
    """Quality over size, with intervals: hollow where a method has the upper layers alone."""
    colours: dict[str, str] = {}
    with picture(path, (7.6, 4)) as axes:
        for name, figures in found.items():
            plain = name.removesuffix(" all layers").removesuffix(f" {SPARSE}")
            # What chose its own settings is no end of a line.
            method = "lora, settings found" if plain.startswith(FINDS) else plain
            colour = colours.setdefault(method, f"C{len(colours)}")
            sparse = SPARSE in name
            value = figures["macro_f1"]
            low, high = (figures.get(f"macro_f1, {end}", value) for end in ("low", "high"))
            axes.errorbar(
                figures["parameters"],
                value,
                [[max(0.0, value - low)], [max(0.0, high - value)]],
                fmt="o",
                color=colour,
                markerfacecolor="none" if sparse else colour,
                elinewidth=0.6,
            )
        for method, colour in colours.items():
            ends = [
                f for n, f in found.items() if n in (f"{method} all layers", f"{method} {SPARSE}")
            ]
            axes.plot(
                [f["parameters"] for f in ends],
                [f["macro_f1"] for f in ends],
                color=colour,
                linewidth=1,
                alpha=0.5,
                label=method,
            )
        axes.set_xscale("log")
        axes.set_xticks([2e5, 5e5, 1e6, 2e6, 5e6], ["0.2M", "0.5M", "1M", "2M", "5M"])
        axes.set_xticks([], minor=True)
        axes.set(
            xlabel="parameters (hollow: upper third of the layers)",
            ylabel="macro-F1 on documents not trained on",
        )
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))


if __name__ == "__main__":
    sys.exit(main())
