"""The install gate: a skill's adapter and head, read, checked, and proven to act."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from agentkit.adapters.heads import KIND, ChoiceHead, Head, SpanLabelHead, build_head
from agentkit.adapters.lora import LoraDelta, lora_deltas
from agentkit.adapters.weights import (
    check_against_modules,
    fingerprint_status,
    load_adapter,
    read_tensors,
)
from agentkit.engine.activation import Slots
from agentkit.engine.backbone import Backbone
from agentkit.errors import AdapterError
from agentkit.skill.folder import Skill
from agentkit.skill.manifest import ChoiceAnswer, Manifest, MarksAnswer

_PROBE_TOKENS = 16


@dataclass(frozen=True, slots=True, eq=False)
class PreparedSkill:
    """A skill's weights in memory, checked against the backbone, not yet in its modules."""

    digest: str
    name: str
    where: str
    deltas: Mapping[str, LoraDelta]
    head: Head | None
    min_layer: int
    fingerprint: Literal["match", "declared", "unknown"]


@dataclass(frozen=True, slots=True, eq=False)
class LoadedSkill:
    """A skill that the engine serves."""

    digest: str
    name: str
    slot: int
    head: Head | None
    min_layer: int
    """Lowest layer it acts on: what comes before is the bare backbone's."""
    fingerprint: Literal["match", "declared", "unknown"]
    """How the backbone meets the one it was trained on; `unknown` is served with a warning."""
    nbytes: int


def prepare(skill: Skill, backbone: Backbone) -> PreparedSkill:
    """Read a skill's adapter and head; touches no module, so any thread may do it.

    Raises `AdapterError` where anything does not fit the config or the backbone.
    """
    where = str(skill.path)
    config, weights, pairs = load_adapter(skill)
    if config.alora_invocation_tokens is not None:
        raise AdapterError("activated LoRA is not served", where=where, hint="train plain LoRA")
    status = fingerprint_status(
        weights.metadata, backbone.fingerprint, skill.manifest.backbones, where=where
    )
    shapes = {name: (spec.outputs, spec.inputs) for name, spec in backbone.modules.items()}
    check_against_modules(pairs, shapes, config, where=where)
    deltas = lora_deltas(pairs, backbone.dtype, backbone.device)
    for name, delta in deltas.items():
        if not (delta.down.isfinite().all() and delta.up.isfinite().all()):
            raise AdapterError(
                f"{name}: values exceed the range of {backbone.dtype}",
                where=where,
                hint="compute in float32 or bfloat16",
            )
    if all(delta.silent for delta in deltas.values()):
        raise AdapterError(
            "the adapter changes nothing: all of its products are zero",
            where=where,
            hint="it was saved before it was trained",
        )
    return PreparedSkill(
        digest=skill.digest,
        name=skill.name,
        where=where,
        deltas=deltas,
        head=_read_head(skill, backbone),
        min_layer=min(backbone.modules[name].layer for name in deltas),
        fingerprint=status,
    )


def _read_head(skill: Skill, backbone: Backbone) -> Head | None:
    if skill.head_weights is None:
        return None
    where = str(skill.head_weights)
    weights = read_tensors(skill.head_weights)
    tensors = {name: tensor.float() for name, tensor in weights.tensors.items()}
    head = build_head(weights.metadata.get(KIND, ""), tensors, where=where)
    width = head.hidden
    if width != backbone.hidden:
        raise AdapterError(
            f"the task head reads states of {width} numbers, the backbone's have {backbone.hidden}",
            where=where,
            hint="the head was trained on another backbone",
        )
    _check_answers(head, skill.manifest, where)
    return head.to(backbone.device)


def _check_answers(head: Head, manifest: Manifest, where: str) -> None:
    answer = manifest.answer
    gives: tuple[int, ...]
    wants: tuple[int, ...]
    if isinstance(answer, ChoiceAnswer) and answer.scoring == "head":
        gives = (head.choice.out_features,) if isinstance(head, ChoiceHead) else ()
        wants = (len(answer.choices),)
    elif isinstance(answer, MarksAnswer):
        gives = ()
        if isinstance(head, SpanLabelHead):
            gives = (head.span.out_features, head.token.out_features)
        units = [label.unit for label in answer.labels]
        wants = (units.count("sentence"), units.count("token"))
    else:
        return
    if gives != wants:
        raise AdapterError(
            f"the {head.kind!r} head gives {gives or 'other'} answers, skill.yaml wants {wants} "
            f"of kind {answer.kind!r}",
            where=where,
            hint="train the head for the skill's present answers",
        )


class Gate:
    """Stateful: puts prepared skills into the backbone's modules, if they prove to act."""

    def __init__(self, backbone: Backbone, slots: Slots) -> None:
        self._backbone = backbone
        self._slots = slots
        step = max(1, len(backbone.tokenizer) // (_PROBE_TOKENS + 1))
        self._ids = torch.arange(1, _PROBE_TOKENS + 1, device=backbone.device) * step
        self._bare = self._probe(None)

    def install(self, skill: PreparedSkill) -> LoadedSkill:
        """Fill a slot and prove it; on `AdapterError` everything is as it was before."""
        slot = self._slots.fill(skill.deltas)
        with ExitStack() as undo:
            undo.callback(self._slots.empty, slot)
            adapted = self._probe(slot)
            if not adapted.isfinite().all():
                raise AdapterError(
                    "the adapted backbone gives NaN or infinite logits", where=skill.where
                )
            if torch.equal(adapted, self._bare):
                raise AdapterError(
                    "the adapter changes nothing: logits equal the bare backbone's",
                    where=skill.where,
                    hint=f"its effect may be below the precision of {self._backbone.dtype}",
                )
            if not torch.equal(self._probe(None), self._bare):
                raise AdapterError("the backbone does not come back", where=skill.where)
            undo.pop_all()
        return LoadedSkill(
            digest=skill.digest,
            name=skill.name,
            slot=slot,
            head=skill.head,
            min_layer=skill.min_layer,
            fingerprint=skill.fingerprint,
            nbytes=sum(delta.nbytes for delta in skill.deltas.values()),
        )

    def _probe(self, slot: int | None) -> Tensor:
        at = torch.arange(len(self._ids), device=self._backbone.device)
        with torch.inference_mode(), self._slots.activated(slot):
            logits = self._backbone.logits(
                self._ids, positions=at, at=at, mask=self._backbone.causal_mask(len(at))
            )
        return logits[:, : len(self._backbone.tokenizer)]  # what lies beyond is never finite
