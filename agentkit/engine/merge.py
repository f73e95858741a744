"""A skill's adapter folded into the backbone's weights: a plain model that needs no agentkit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any

import torch
from torch import nn

from agentkit.adapters.kinds import Kind, LoraConfig
from agentkit.adapters.lora import adapted_weight, dora_scale, frozen_weight
from agentkit.adapters.weights import load_adapter
from agentkit.engine.backbone import Backbone, load_backbone, without_progress_bars
from agentkit.engine.install import prepare
from agentkit.engine.precision import DTYPES, TypeName
from agentkit.errors import AdapterError, InputError
from agentkit.skill.folder import Skill

NOT_MERGED: dict[Kind, str] = {
    "activated": "an activated adapter acts from its invocation on alone; merged weights would act "
    "on every token",
    "bottleneck": "a bottleneck has a non-linearity, which no weight of the backbone can hold",
    "hybrid": "its bottlenecks have a non-linearity, which no weight of the backbone can hold",
    "prefix": "a prefix is keys and values before the prompt, not a change of weights",
}
"""Why a kind of adapter has no merged form."""


def merge(skill: Skill, backbone: Path, out: Path, *, dtype: TypeName = "float32") -> None:
    """Write the merged model to `out`, as transformers loads it: weights, config and tokenizer.

    `backbone` is the model's folder. Products are added in float32 and stored as `dtype`. A task
    head is no part of a plain model and stays behind. `out` appears whole or not at all. Raises
    `AdapterError` for a kind that cannot be merged or an adapter that does not fit, `InputError`
    if there is something at `out` already.
    """
    where = str(skill.path)
    adapter = load_adapter(skill)
    if not isinstance(adapter.config, LoraConfig) or adapter.config.kind in NOT_MERGED:
        raise AdapterError(
            f"cannot be merged: {NOT_MERGED[adapter.config.kind]}",
            where=where,
            hint="serve it with agentkit",
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError("there is something already", where=str(out), hint="give a new folder")
    model = load_backbone(backbone, attention="eager")
    prepare(skill, model)  # every check of the install gate that needs no forward
    with torch.no_grad():
        for name, pair in adapter.pairs.items():
            _untie(model, name)
            weight = frozen_weight(model.modules[name].module)
            merged = adapted_weight(pair, weight)
            if pair.magnitude is not None:
                merged *= dora_scale(pair, weight)[:, None]
            weight.copy_(merged)
    model.model.to(dtype=DTYPES[dtype])  # type: ignore[call-arg]
    with _whole(out) as folder, without_progress_bars():
        model.model.save_pretrained(folder)
        model.tokenizer.raw.save_pretrained(folder)


def _untie(backbone: Backbone, name: str) -> None:
    """Give an adapted output layer a weight of its own where it shares the embeddings'."""
    model: Any = backbone.model
    module: Any = backbone.modules[name].module
    if module is model.get_output_embeddings() and module.weight is _embedding(model):
        module.weight = nn.Parameter(module.weight.clone(), requires_grad=False)
        model.config.tie_word_embeddings = False


def _embedding(model: Any) -> Any:
    return model.get_input_embeddings().weight


@contextmanager
def _whole(out: Path) -> Iterator[Path]:
    """A folder to write to that becomes `out` at the end; nothing stays if the block fails."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    except OSError as cause:
        raise InputError(f"cannot be written: {cause.strerror}", where=str(out)) from cause
    try:
        yield folder
        folder.chmod(0o755)
        folder.replace(out)
    except OSError as cause:
        raise InputError(f"cannot be written: {cause.strerror}", where=str(out)) from cause
    finally:
        rmtree(folder, ignore_errors=True)
