"""What a training leaves beside its adapter: figures, a model card and the curve as a picture."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from agentkit.errors import MissingExtraError, SkillError
from agentkit.models import license_of
from agentkit.pictures import picture
from agentkit.settings import Settings
from agentkit.skill.manifest import Manifest
from agentkit.training.packs import Pack
from agentkit.training.rows import Split
from agentkit.training.spec import TrainSpec, steps_an_epoch

_CURVE = "training.svg"


def facts_of(
    spec: TrainSpec, split: Split, settings: Settings, fingerprint: str, packs: Sequence[Pack]
) -> dict[str, Any]:
    """What a training was of: backbone, settings, data, size and versions."""
    import peft
    import torch
    import transformers

    from agentkit import __version__

    return {
        # A local folder's own name: where it lay on the machine that trained says nothing.
        "backbone": {
            "name": Path(settings.backbone).name
            if Path(settings.backbone).is_dir()
            else settings.backbone,
            "fingerprint": fingerprint,
            "license": license_of(fingerprint),
        },
        "training": spec.model_dump(mode="json", exclude={"data", "calibration"}) | _folders(spec),
        "data": list(split.sources),
        "packs": len(packs),
        "tokens_per_epoch": sum(len(p.ids) for p in packs),
        "versions": {
            "agentkit": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "peft": peft.__version__,
            **({"bitsandbytes": version("bitsandbytes")} if spec.quantization == "nf4" else {}),
        },
    }


def _folders(spec: TrainSpec) -> dict[str, str]:
    """Other skills' folders by their own names, for the same reason."""
    named = {"start_from": spec.start_from, "layers_of": spec.layers_of}
    return {key: Path(path).name for key, path in named.items() if path}


def write_record(folder: Path, manifest: Manifest, metrics: dict[str, Any]) -> None:
    """Write `metrics.json`, `README.md` (the model card) and, with matplotlib, `training.svg`."""
    _curve(folder / _CURVE, manifest.name, metrics["loss"])
    write_figures(folder, manifest, metrics)


def write_figures(folder: Path, manifest: Manifest, metrics: dict[str, Any]) -> None:
    """Write `metrics.json` and the model card anew, each whole or not at all; the curve stays."""
    card = _card(manifest, metrics, _CURVE if (folder / _CURVE).exists() else None)
    record = json.dumps(metrics, indent=2, ensure_ascii=False) + "\n"
    for name, text in (("metrics.json", record), ("README.md", card)):
        fresh = folder / f".{name}.fresh"
        fresh.write_text(text, encoding="utf-8")
        fresh.replace(folder / name)


def read_figures(folder: Path) -> dict[str, Any] | None:
    """What `metrics.json` holds; None where there is none. Raises `SkillError` for another file."""
    record = folder / "metrics.json"
    if not record.exists():
        return None
    try:
        metrics = json.loads(record.read_text(encoding="utf-8"))
        card_of = {"training", "backbone", "data", "tuning", "loss", "seconds"} <= metrics.keys()
    except (OSError, ValueError, AttributeError):
        card_of = False
    if not card_of:
        raise SkillError(
            "it is not what a training writes", where=str(record), hint="move it out of the way"
        )
    return dict(metrics)


def _card(manifest: Manifest, metrics: dict[str, Any], curve: str | None) -> str:
    training, backbone = metrics["training"], metrics["backbone"]
    licence = backbone.get("license") or license_of(backbone["fingerprint"])  # an older record
    sources = "\n".join(
        f"| {s['source']} | {s['license']} | {_rows(s)} | {s['tuning_rows']} "
        f"| `{s['sha256'][:12]}` |"
        for s in metrics["data"]
    )
    tuning = metrics["tuning"]
    figures = "\n".join(
        f"| {name} | {' | '.join(str(one.get(name, '')) for one in tuning.values())} |"
        for name, value in tuning["trained"].items()
        if not isinstance(value, dict)
    )
    found = metrics.get("lower_states_found")
    apart = [f"{found:.0%} of the lower layers' states were there before"] if found else []
    if compared := metrics.get("frozen_seconds"):
        apart.append(f"{compared / 60:.0f} minutes of it for the frozen baseline")
    beside = f" ({'; '.join(apart)})" if apart else ""
    first = training.get("start_from")  # an older record has none
    begun = f" from the weights of `{first}`" if first else ""
    drawn = f"; `{curve}` is the loss curve" if curve else ""
    return f"""# {manifest.name}

{manifest.description}

{_what(training)} for the backbone `{backbone["name"]}` (licence: {licence};
fingerprint `{backbone["fingerprint"][:12]}`),
trained with `agentkit train`{begun}: {_way(training)}, {_passes(metrics)} of
{metrics["tokens_per_epoch"]:,} tokens in {metrics["seconds"] / 60:.0f} minutes{beside}, with at
most {metrics["peak_memory_bytes"] / 1e9:.1f} GB of memory.

## Data

| source | licence | training rows | tuning rows | SHA-256 |
|---|---|---|---|---|
{sources}

## Figures on the tuning rows

Documents of the tuning rows were kept out of training; thresholds were chosen on them. `untrained`
is the bare backbone: a task head has learnt nothing yet, a probe of its states is fitted.
{_frozen(tuning)}
| figure | {" | ".join(tuning)} |
|---|{"---|" * len(tuning)}
{figures}
{_calibration(metrics)}
All figures, versions and settings are in `metrics.json`{drawn}.

## Limits

English only. The adapter answers for the kind of documents in the table; what it says of others is
unmeasured. It is an aid to a reader, not legal advice.
"""


def _frozen(tuning: dict[str, Any]) -> str:
    if "frozen" not in tuning:
        return ""
    return "`frozen` is such a task head trained on the frozen backbone, without an adapter.\n"


def _calibration(metrics: dict[str, Any]) -> str:
    """How sure the answers are, beside how often they are right; empty without a calibration."""
    found = metrics.get("calibration")
    if not found:
        return ""
    lines = "\n".join(
        f"| {name} | {part['questions']} | {part['novelty']} "
        f"| {part['before']['accuracy']} / {part['before']['ece']} "
        f"| {part['after']['accuracy']} / {part['after']['ece']} |"
        for name, part in found["parts"].items()
    )
    return f"""
## Calibration

`agentkit calibrate` fitted how sure the answers are, by how new a question is, to these rows as
they are served (accuracy / expected calibration error; novelty is the median):

| rows | questions | novelty | before | after |
|---|---|---|---|---|
{lines}
"""


def _rows(source: dict[str, Any]) -> str:
    times = source.get("repeat", 1)
    more = f" and {source['negated_rows']} negated" if source.get("negated_rows") else ""
    return f"{source['train_rows']}{more}" + (f", each taken {times} times" if times > 1 else "")


def _passes(metrics: dict[str, Any]) -> str:
    # Without a step there was a probe alone, fitted to one reading.
    alone = metrics["training"]["method"] == "head" and not metrics["loss"]
    return "one reading" if alone else f"{_epochs(metrics):.3g} epochs"


def _epochs(metrics: dict[str, Any]) -> float:
    """How many there were: minutes may have ended them before the last of the planned steps.

    Less short of the plan than one entry of the history is from the next is the plan.
    """
    training, history = metrics["training"], metrics["loss"]
    planned = float(training["epochs"])
    if training["max_minutes"] is None or not history:
        return planned
    an_epoch = steps_an_epoch(metrics["packs"], training["packs_per_step"])
    done = history[-1]["step"]
    near = planned * an_epoch - done < history[0]["step"]
    return planned if near else float(done / an_epoch)


def _what(training: dict[str, Any]) -> str:
    return "A task head" if training["method"] == "head" else "An adapter"


def _way(training: dict[str, Any]) -> str:
    """The method with its size and its layers, as a card says it."""
    method = training["method"]
    if method == "head":
        return "the task head alone, the backbone frozen"
    size = f"rank {training['rank']}"
    if method == "prefix":
        return f"prefix of {training['virtual_tokens']} virtual tokens, every layer"
    if method in ("bottleneck", "hybrid"):
        own = f"{training['placement']}, reduction factor {training['reduction_factor']:g}"
        size = own if method == "bottleneck" else f"{size}, {own}"
    return f"{method}, {size}, layers {training['layers']}"


def _curve(path: Path, name: str, history: list[dict[str, float]]) -> None:
    if not history:
        path.unlink(missing_ok=True)  # an earlier training's
        return
    # A picture is an extra: the numbers are in metrics.json.
    with suppress(MissingExtraError), picture(path, (6, 3)) as axes:
        axes.plot([h["step"] for h in history], [h["loss"] for h in history], color="#2f5d8a")
        axes.set(xlabel="step", ylabel="loss", title=name)
