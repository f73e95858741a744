"""The one model in memory: frozen weights, its tokenizer, and what others need to know of it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Literal, TypeAlias

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.utils import logging as hf_logging

from agentkit.adapters.layers import ModuleSpec, adaptable_modules
from agentkit.engine.attention import NAME, register
from agentkit.engine.depth import decoder_layers, kept_inputs, only_layers
from agentkit.engine.precision import DtypeName, PhasedWeights, computing_type, has_phases
from agentkit.errors import InputError, ModelError
from agentkit.modelfolder import check_folder, fingerprint

Mask: TypeAlias = Tensor | dict[str, Tensor] | None
"""What the model takes as attention mask: `(1, 1, queries, keys)`, by kind where there are kinds;
None is causal."""
_ATTENTION = {"full_attention", "sliding_attention"}
_FALLBACK_CONTEXT = 2048


class SharedTokenizer:
    """Stateful: a fast tokenizer that threads may share.

    Encoding with or without special tokens sets a switch inside the tokenizer, so one thread
    could make another read a document's text as special tokens; a lock keeps calls apart.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.raw = tokenizer
        self.chat_template: Any = tokenizer.chat_template
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self.raw)

    def __call__(self, text: Any, **kwargs: Any) -> Any:
        with self._lock:
            return self.raw(text, **kwargs)

    def apply_chat_template(self, conversation: Any, **kwargs: Any) -> Any:
        with self._lock:
            return self.raw.apply_chat_template(conversation, **kwargs)

    def plain(self, text: str) -> list[int]:
        """Ids of untrusted text: what looks like a special token is spelled as characters."""
        ids = self(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return list(ids)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, without special tokens and without tidying of spaces."""
        with self._lock:
            text = self.raw.decode(
                list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        return str(text)


@dataclass(frozen=True, slots=True, eq=False)
class Backbone:
    """A frozen model, ready to compute; use it from one thread at a time."""

    model: PreTrainedModel
    tokenizer: SharedTokenizer
    folder: Path
    fingerprint: str
    """Of the source tensors, before any cast."""
    dtype: torch.dtype
    """Of the weights, the states, and the keys and values."""
    device: torch.device
    eos_ids: frozenset[int]
    context: int
    """Tokens."""
    hidden: int
    layers: int
    vocabulary: int
    """Width of the logits; may exceed the tokenizer's."""
    modules: Mapping[str, ModuleSpec]
    """Linear modules and sub-layers that an adapter can act on, by name."""
    sliding_window: int | None
    layer_types: frozenset[str]
    """Empty where the architecture has one kind of attention in all layers."""
    decoder: nn.ModuleList | None
    """Its layers, in order; None where the architecture keeps them otherwise."""
    phased: PhasedWeights | None = None
    """Copies of the weights, each fastest in a phase of its own."""

    @property
    def adapter_dtype(self) -> torch.dtype:
        """What low-rank products are held in: torch multiplies a few rows fastest in float32."""
        return torch.float32 if self.phased else self.dtype

    @property
    def weight_bytes(self) -> Mapping[str, int]:
        """Memory of the weights, by the type that they are held in."""
        held = {
            str(self.dtype).removeprefix("torch."): sum(p.nbytes for p in self.model.parameters())
        }
        return held | (dict(self.phased.nbytes) if self.phased else {})

    def writing(self, rows: int | None) -> AbstractContextManager[None]:
        """Within it, one forward writes a token in each of `rows`; None is a forward that reads."""
        return self.phased.step(rows) if self.phased else nullcontext()

    @property
    def attends_trees(self) -> bool:
        """Whether one forward may hold several trees of rows, each with a cache of its own."""
        return bool(self.model.config._attn_implementation == NAME)

    def keeping(self, layers: Collection[int]) -> AbstractContextManager[Mapping[int, Tensor]]:
        """Within it, the states `(tokens, hidden)` that some layers take, by layer, of one forward.

        `self.layers` stands for what the last layer gives, before the final norm. Needs `decoder`.
        """
        if not layers:
            return nullcontext({})
        if self.decoder is None:
            raise ModelError("what the backbone's layers take cannot be kept")
        return kept_inputs(self.decoder, layers)

    def layer_states(
        self,
        ids: Tensor,
        chosen: range,
        *,
        states: Tensor | None,
        positions: Tensor,
        cache: Cache,
        mask: Mask,
    ) -> Tensor:
        """`(tokens, hidden)`: what some layers make of `states`, or of ids if they are the first.

        After the last layer the final norm is applied; before it, the states are those that
        layer `chosen.stop` takes. Needs `decoder`.
        """
        if self.decoder is None:
            raise ModelError("the backbone's layers cannot be run by themselves")
        with only_layers(self.decoder, chosen, states) as taken:
            final = self.hidden_states(ids, positions=positions, cache=cache, mask=mask)
            return final if chosen.stop == self.layers else taken()

    def hidden_states(
        self,
        ids: Tensor,
        *,
        positions: Tensor,
        cache: Cache | None = None,
        mask: Mask = None,
    ) -> Tensor:
        """Final-norm states `(tokens, hidden)` of one sequence of ids `(tokens,)`.

        Keys and values are added to `cache`. A mask comes from `attention_mask`; None is causal.
        """
        output = self.model.base_model(
            input_ids=ids[None],
            position_ids=positions[None],
            past_key_values=cache,
            attention_mask=mask,
            use_cache=cache is not None,
        )
        states: Tensor = output.last_hidden_state[0]
        return states

    def logits(
        self,
        ids: Tensor,
        *,
        positions: Tensor,
        at: Tensor,
        cache: Cache | None = None,
        mask: Mask = None,
    ) -> Tensor:
        """Logits `(len(at), vocabulary)`, float32, of the tokens whose indices are `at`.

        What the tokenizer cannot spell is at minus infinity.
        """
        output = self.model(
            input_ids=ids[None],
            position_ids=positions[None],
            past_key_values=cache,
            attention_mask=mask,
            use_cache=cache is not None,
            logits_to_keep=at,
        )
        logits: Tensor = output.logits[0].float()
        if (known := len(self.tokenizer)) < self.vocabulary:
            logits[:, known:] = -torch.inf
        return logits

    def attention_mask(
        self, visible: Tensor, queries: Tensor, keys: Tensor
    ) -> Tensor | dict[str, Tensor]:
        """What the model takes as mask when query token i may see key j where `visible[i, j]`.

        `visible` is boolean `(queries, keys)`; `queries` and `keys` are positions, which sliding
        windows are measured in. Additive, because eager attention takes no other.
        """
        full = self._additive(visible)
        if self.sliding_window is None:
            return full
        near = keys[None, :] > queries[:, None] - self.sliding_window
        sliding = self._additive(visible & near)
        if not self.layer_types:
            return sliding
        return {"full_attention": full, "sliding_attention": sliding}

    def causal_mask(self, length: int) -> Mask:
        """The mask of one plain sequence; None where the model needs none."""
        if self.sliding_window is None:
            return None
        at = torch.arange(length, device=self.device)
        return self.attention_mask(at[None, :] <= at[:, None], at, at)

    def _additive(self, visible: Tensor) -> Tensor:
        mask = torch.zeros(visible.shape, dtype=self.dtype, device=self.device)
        return mask.masked_fill_(~visible, torch.finfo(self.dtype).min)[None, None]


def _check_device(name: str) -> None:
    """Raises `InputError` for a device that torch cannot compute on here."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        told = str(error).splitlines()[0]
        raise InputError(
            f"cannot compute on {name!r} here: {told}", where="device", hint="device=cpu"
        ) from error
    if device.type == "meta":
        raise InputError("nothing is computed on 'meta'", where="device", hint="device=cpu")


def load_backbone(
    folder: Path,
    *,
    dtype: DtypeName = "float32",
    device: str = "cpu",
    threads: int | None = None,
    attention: Literal["sdpa", "eager"] = "sdpa",
) -> Backbone:
    """The model of a folder, from its safetensors alone, with the network left alone.

    `threads` sets torch's, for the whole process. `dtype="auto"` is what measures fastest in each
    phase (see `precision`); "float32" is exact. Raises `ModelError` where the folder asks for
    remote code, lacks weights, holds an architecture that is not a decoder with attention layers,
    or has no fast tokenizer; `InputError` for a device that is not here.
    """
    check_folder(folder, "backbone")
    _check_device(device)
    if threads is not None:
        torch.set_num_threads(threads)
    where = str(folder)
    computes_in = computing_type(dtype, device)
    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        with without_progress_bars():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=computes_in,
                use_safetensors=True,
                attn_implementation=attention,
                output_loading_info=True,
                **local,
            )
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, **local)
        model, report = loaded
        model.to(device)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise ModelError(
            f"the backbone could not be loaded: {error}",
            where=where,
            hint="give a folder that save_pretrained of a causal language model wrote",
        ) from error
    if report["missing_keys"] or report["mismatched_keys"]:
        odd = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
        raise ModelError(f"the weights lack {odd[0]} ({len(odd)} tensors)", where=where)
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            "the tokenizer has no fast form, and offsets need one",
            where=where,
            hint="add its tokenizer.json",
        )
    if model.config._attn_implementation == "sdpa":
        register(model)
    config: Any = model.config.get_text_config(decoder=True)
    kinds = frozenset(getattr(config, "layer_types", None) or ())
    if kinds - _ATTENTION:
        raise ModelError(
            f"layers of kind {sorted(kinds - _ATTENTION)[0]!r} are not supported", where=where
        )
    layers = int(config.num_hidden_layers)
    vocabulary = int(model.get_output_embeddings().weight.shape[0])
    if len(tokenizer) > vocabulary:
        raise ModelError(
            f"the tokenizer has {len(tokenizer)} tokens, the model {vocabulary}", where=where
        )
    window: int | None = getattr(config, "sliding_window", None) or None
    if kinds and "sliding_attention" not in kinds:
        window = None
    model.eval().requires_grad_(False)
    modules = adaptable_modules(model, layers)
    return Backbone(
        model=model,
        tokenizer=SharedTokenizer(tokenizer),
        folder=folder,
        fingerprint=fingerprint(folder),
        dtype=computes_in,
        device=torch.device(device),
        eos_ids=_ends(model, tokenizer),
        context=_context(config),
        hidden=int(config.hidden_size),
        layers=layers,
        vocabulary=vocabulary,
        modules=modules,
        sliding_window=window,
        layer_types=kinds,
        decoder=decoder_layers(model, layers),
        phased=PhasedWeights(modules, _norms(model)) if has_phases(dtype, device) else None,
    )


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """What is shown is the command line's business, not a library's."""
    shown = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            hf_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _norms(model: Any) -> list[Any]:
    """The modules that look like root mean square norms."""
    return [one for one in model.modules() if {"weight", "variance_epsilon"} <= set(dir(one))]


def _context(config: Any) -> int:
    length = getattr(config, "max_position_embeddings", None)
    return _FALLBACK_CONTEXT if length is None else int(length)


def _ends(model: Any, tokenizer: Any) -> frozenset[int]:
    """Ids that end an answer, by the generation config, the config and the tokenizer."""
    ends: set[int] = set()
    for holder in (model.generation_config, model.config, tokenizer):
        value = getattr(holder, "eos_token_id", None)
        ends.update(value if isinstance(value, list | tuple) else [] if value is None else [value])
    return frozenset(ends)
