"""The install gate: a skill's adapter and head, read, checked, and proven to act."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

import torch
from torch import Tensor

from agentkit.adapters.bottleneck import bottleneck_deltas, check_bottlenecks
from agentkit.adapters.head_labels import check_labels
from agentkit.adapters.heads import KIND, ChoiceHead, Head, LinearProbe, SpanLabelHead, build_head
from agentkit.adapters.kinds import BottleneckConfig, HybridConfig, Kind, LoraConfig, PrefixConfig
from agentkit.adapters.lora import dora_deltas, lora_deltas
from agentkit.adapters.prefix import PrefixPairs, check_prefix, prefix_pairs
from agentkit.adapters.weights import (
    Adapter,
    bare_head_metadata,
    check_against_modules,
    fingerprint_status,
    load_adapter,
    read_tensors,
)
from agentkit.engine.activation import Slots
from agentkit.engine.backbone import Backbone
from agentkit.engine.prefix import GrowingCache
from agentkit.errors import AdapterError
from agentkit.prompt import frame_of
from agentkit.skill.folder import Skill
from agentkit.skill.manifest import Manifest, MarksAnswer

_PROBE_TOKENS = 16

Fingerprint: TypeAlias = Literal["match", "declared", "unknown"]
"""How a backbone meets the one that an adapter was trained on."""


class Delta(Protocol):
    """What an adapter does at one module, token by token."""

    def __call__(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """The module's adapted outputs; `outputs` may be changed in place."""
        ...

    @property
    def silent(self) -> bool:
        """Whether it changes nothing whatever the inputs are."""
        ...

    @property
    def tensors(self) -> tuple[Tensor, ...]: ...

    @property
    def nbytes(self) -> int: ...


@dataclass(frozen=True, slots=True, eq=False)
class PreparedSkill:
    """A skill's weights in memory, checked against the backbone, not yet in its modules."""

    digest: str
    name: str
    where: str
    kind: Kind
    deltas: Mapping[str, Delta]
    prefix_states: PrefixPairs | None
    invocation_tokens: tuple[int, ...]
    head: Head | None
    lowest_layer: int
    fingerprint: Fingerprint


@dataclass(frozen=True, slots=True, eq=False)
class LoadedSkill:
    """A skill that the engine serves."""

    digest: str
    name: str
    slot: int
    head: Head | None
    lowest_layer: int
    """Lowest layer it acts on: what comes before is the bare backbone's."""
    fingerprint: Fingerprint
    """`unknown` is served with a warning."""
    nbytes: int
    """Of its adapter and its head."""
    kind: Kind = "lora"
    starts_at_invocation: bool = False
    """Whether it leaves everything before the invocation to the bare backbone."""
    prefix_states: PrefixPairs | None = None
    """By layer, keys and values `(1, kv heads, n, head size)` that come before every prompt."""
    invocation_tokens: tuple[int, ...] = ()
    """What an activated adapter was trained to start at: how the backbone's invocation begins."""

    @property
    def virtual_tokens(self) -> int:
        """Positions that come before every prompt; they count in the context."""
        return self.prefix_states[0][0].shape[-2] if self.prefix_states else 0


def prepare(skill: Skill, backbone: Backbone) -> PreparedSkill:
    """Read a skill's adapter and head; touches no module, so any thread may do it.

    Raises `AdapterError` where anything does not fit the config or the backbone.
    """
    where = str(skill.path)
    if not skill.adapter:
        return _head_alone(skill, backbone, where)
    adapter = load_adapter(skill)
    config = adapter.config
    status = fingerprint_status(
        adapter.weights.metadata, backbone.fingerprint, skill.manifest.backbones, where=where
    )
    deltas = _deltas(adapter, backbone, where)
    prefix_states = None
    if isinstance(config, PrefixConfig) and adapter.prompt is not None:
        prefix_states = _prefix_states(adapter.prompt, config, backbone, where)
    invocation: tuple[int, ...] = ()
    if isinstance(config, LoraConfig) and config.alora_invocation_tokens is not None:
        invocation = tuple(config.alora_invocation_tokens)
        _check_invocation(invocation, backbone, where)
    _check_values(deltas, prefix_states, backbone, where)
    lowest = min((backbone.modules[name].layer for name in deltas), default=0)
    return PreparedSkill(
        digest=skill.digest,
        name=skill.name,
        where=where,
        kind=config.kind,
        deltas=deltas,
        prefix_states=prefix_states,
        invocation_tokens=invocation,
        head=_read_head(skill, backbone, lowest),
        lowest_layer=lowest,
        fingerprint=status,
    )


def _head_alone(skill: Skill, backbone: Backbone, where: str) -> PreparedSkill:
    """A skill whose head reads the bare backbone: it shares every reading with it."""
    status = fingerprint_status(
        bare_head_metadata(skill), backbone.fingerprint, skill.manifest.backbones, where=where
    )
    return PreparedSkill(
        digest=skill.digest,
        name=skill.name,
        where=where,
        kind="head",
        deltas={},
        prefix_states=None,
        invocation_tokens=(),
        head=_read_head(skill, backbone, backbone.layers),
        lowest_layer=backbone.layers,
        fingerprint=status,
    )


def _deltas(adapter: Adapter, backbone: Backbone, where: str) -> dict[str, Delta]:
    """An adapter's parts by module, each checked to land on one that its config means."""
    config = adapter.config
    found: dict[str, Delta] = {}
    lora = config.lora if isinstance(config, HybridConfig) else config
    if isinstance(lora, LoraConfig):
        linear = {
            name: (spec.outputs, spec.inputs)
            for name, spec in backbone.modules.items()
            if spec.part == "linear"
        }
        check_against_modules(adapter.pairs, linear, lora, where=where)
        if lora.use_dora:
            found.update(dora_deltas(adapter.pairs, backbone.modules, backbone.adapter_dtype))
        else:
            found.update(lora_deltas(adapter.pairs, backbone.adapter_dtype, backbone.device))
    bottleneck = config.bottleneck if isinstance(config, HybridConfig) else config
    if isinstance(bottleneck, BottleneckConfig):
        check_bottlenecks(adapter.bottlenecks, backbone.modules, bottleneck, where=where)
        found.update(
            bottleneck_deltas(adapter.bottlenecks, bottleneck, backbone.dtype, backbone.device)
        )
    return found


def _prefix_states(
    prompt: Tensor, config: PrefixConfig, backbone: Backbone, where: str
) -> PrefixPairs:
    model: Any = backbone.model.config.get_text_config(decoder=True)
    heads = model.num_attention_heads
    check_prefix(
        config,
        layers=backbone.layers,
        heads=getattr(model, "num_key_value_heads", None) or heads,
        head_size=getattr(model, "head_dim", None) or backbone.hidden // heads,
        context=backbone.context,
        where=where,
    )
    return prefix_pairs(prompt, config, backbone.dtype, backbone.device)


def _check_invocation(tokens: tuple[int, ...], backbone: Backbone, where: str) -> None:
    """The engine starts an activated adapter where the prompt's invocation does."""
    text = frame_of(backbone.tokenizer).invocation
    own = tuple(backbone.tokenizer(text, add_special_tokens=False)["input_ids"])
    if own[: len(tokens)] != tokens:
        raise AdapterError(
            f"its invocation tokens are {list(tokens)}, this backbone's prompts invoke with "
            f"{list(own)}",
            where=where,
            hint="train the activated adapter with the backbone's own generation prompt",
        )


def _check_values(
    deltas: Mapping[str, Delta],
    prefix_states: PrefixPairs | None,
    backbone: Backbone,
    where: str,
) -> None:
    parts = [(name, delta.tensors) for name, delta in deltas.items()]
    parts += [(f"layer {layer}", pair) for layer, pair in enumerate(prefix_states or ())]
    for name, tensors in parts:
        if not all(bool(tensor.isfinite().all()) for tensor in tensors):
            raise AdapterError(
                f"{name}: values exceed the range of {backbone.dtype}",
                where=where,
                hint="compute in float32 or bfloat16",
            )
    if prefix_states is None and all(delta.silent for delta in deltas.values()):
        raise AdapterError(
            "the adapter changes nothing: all of its products are zero",
            where=where,
            hint="it was saved before it was trained",
        )


def _read_head(skill: Skill, backbone: Backbone, lowest: int) -> Head | None:
    if skill.head_weights is None:
        return None
    where = str(skill.head_weights)
    weights = read_tensors(skill.head_weights)
    check_labels(weights.metadata, skill.manifest, where=where)
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
    if isinstance(head, LinearProbe):
        _check_probe(head, backbone, lowest, where)
    return head.to(backbone.device)


def _check_probe(probe: LinearProbe, backbone: Backbone, lowest: int, where: str) -> None:
    """A probe reads what no adapter has changed; `lowest` is the first layer that one acts on."""
    if backbone.decoder is None:
        raise AdapterError("the backbone's layers cannot be read apart", where=where)
    if len(probe.term_of) not in (0, len(backbone.tokenizer)):
        raise AdapterError(
            f"the probe knows {len(probe.term_of)} tokens, the backbone has "
            f"{len(backbone.tokenizer)}",
            where=where,
            hint="train the skill on this backbone",
        )
    if not 0 <= probe.reads <= backbone.layers:
        raise AdapterError(
            f"the probe reads what goes into layer {probe.reads}; the backbone has no such layer",
            where=where,
            hint="train the skill on this backbone",
        )
    if probe.reads > lowest:
        raise AdapterError(
            f"the probe reads what goes into layer {probe.reads}; the adapter acts from layer "
            f"{lowest} on",
            where=where,
            hint="adapter and head are of two trainings: train the skill again",
        )


def _choices_of(head: Head, *, probe: bool) -> tuple[int, ...]:
    if isinstance(head, LinearProbe) and probe:
        return (len(head.bias),)
    if isinstance(head, ChoiceHead) and not probe:
        return (head.choice.out_features,)
    return ()


def _check_answers(head: Head, manifest: Manifest, where: str) -> None:
    answer = manifest.answer
    gives: tuple[int, ...]
    wants: tuple[int, ...]
    if manifest.head_choices:
        gives = _choices_of(head, probe=manifest.probes)
        wants = (len(manifest.head_choices),)
    elif isinstance(answer, MarksAnswer):
        gives = ()
        if isinstance(head, SpanLabelHead):
            gives = (head.span.out_features, head.token.out_features)
        units = [label.unit for label in answer.labels]
        wants = (units.count("sentence"), units.count("token"))
    else:
        return
    if gives != wants and isinstance(head, LinearProbe) != manifest.probes:
        raise AdapterError(
            f"the head is of kind {head.kind!r}; answer.choice_by is "
            f"{'probe' if manifest.probes else 'head'!r}",
            where=where,
            hint="train the skill again, or name what it was trained with",
        )
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
            if skill.kind != "head":
                self._prove(slot, skill)
            undo.pop_all()
        tensors = [tensor for pair in skill.prefix_states or () for tensor in pair]
        return LoadedSkill(
            digest=skill.digest,
            name=skill.name,
            slot=slot,
            head=skill.head,
            lowest_layer=skill.lowest_layer,
            fingerprint=skill.fingerprint,
            nbytes=sum(delta.nbytes for delta in skill.deltas.values())
            + sum(tensor.nbytes for tensor in tensors)
            + _bytes_of(skill.head),
            kind=skill.kind,
            starts_at_invocation=skill.kind in ("activated", "head"),
            prefix_states=skill.prefix_states,
            invocation_tokens=skill.invocation_tokens,
        )

    def _prove(self, slot: int, skill: PreparedSkill) -> None:
        """Raise `AdapterError` unless the slot changes the logits, and only while it is active."""
        adapted = self._probe(slot, skill.prefix_states)
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

    def _probe(self, slot: int | None, before: PrefixPairs | None = None) -> Tensor:
        length = before[0][0].shape[-2] if before else 0
        at = torch.arange(len(self._ids), device=self._backbone.device)
        keys = torch.arange(length + len(at), device=at.device)
        queries = keys[length:]
        with torch.inference_mode(), self._slots.activated(slot):
            logits = self._backbone.logits(
                self._ids,
                positions=queries,
                at=at,
                cache=GrowingCache([(pair,) for pair in before], len(at)) if before else None,
                mask=self._backbone.attention_mask(keys <= queries[:, None], queries, keys)
                if before
                else self._backbone.causal_mask(len(at)),
            )
        return logits[:, : len(self._backbone.tokenizer)]  # what lies beyond is never finite


def _bytes_of(head: Head | None) -> int:
    if head is None:
        return 0
    return sum(tensor.nbytes for tensor in (*head.parameters(), *head.buffers()))
