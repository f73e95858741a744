"""Ways to adapt a backbone: each puts its trainable parts onto the model, which stays frozen.

| method | what is trained | what it shares of a document |
|---|---|---|
| `lora` | low-rank updates (https://arxiv.org/abs/2106.09685) | layers below the adapted ones |
| `dora` | the same with magnitudes apart (https://arxiv.org/abs/2402.09353) | the same |
| `bottleneck` | small nets after sub-layers (https://arxiv.org/abs/1902.00751) | the same |
| `hybrid` | LoRA and bottlenecks | the same |
| `alora` | LoRA from the invocation on (https://arxiv.org/abs/2504.12397) | everything before it |
| `prefix` | keys and values of virtual tokens (https://arxiv.org/abs/2101.00190) | nothing |
| `head` | the task head alone, on the frozen backbone | everything |
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import (
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from torch import Tensor, nn

from agentkit.adapters.bottleneck import Bottlenecks
from agentkit.adapters.kinds import BottleneckConfig
from agentkit.errors import SkillError
from agentkit.training.packs import Pack
from agentkit.training.spec import TrainSpec


class ActiveTokens(nn.Module):
    """Stateful: lets through the inputs of the tokens that an activated adapter acts on.

    It takes the place of an adapter's dropout: what it zeroes gets no update, for the update is
    linear and has no bias.
    """

    def __init__(self) -> None:
        super().__init__()
        self.mask: Tensor | None = None

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs if self.mask is None else inputs * self.mask.to(inputs.dtype)


class Attached:
    """Stateful: an adapter on a backbone, and what each pack needs to be read under it."""

    def __init__(
        self,
        peft: PeftModel | None,
        bottlenecks: Bottlenecks | None = None,
        active: ActiveTokens | None = None,
    ) -> None:
        self.peft = peft
        self._bottlenecks = bottlenecks
        self._active = active
        self._hooks = ExitStack()
        self._prefix = peft is not None and bool(peft.active_peft_config.is_prompt_learning)
        self._off = False
        if bottlenecks is not None:
            self._hooks.enter_context(bottlenecks.attached())

    @property
    def apart(self) -> nn.Module | None:
        """The part of the adapter that is no module of the decoder."""
        if self._bottlenecks is not None:
            return self._bottlenecks
        return self.peft.prompt_encoder if self.peft is not None and self._prefix else None

    def inputs(
        self, pack: Pack, dtype: torch.dtype, device: torch.device | None = None
    ) -> dict[str, Any]:
        """What the decoder takes besides the states of a pack."""
        if self._active is not None:
            active = torch.tensor(pack.active, dtype=dtype, device=device)
            self._active.mask = active[None, :, None]
        mask = pack.mask(dtype, device)
        positions = torch.tensor([pack.positions], device=device)
        if self.peft is None or not self._prefix or self._off:
            return {"attention_mask": mask, "position_ids": positions, "use_cache": False}
        cache: Any = self.peft.get_prompt(batch_size=1)
        virtual = cache.get_seq_length()
        seen = torch.zeros((1, 1, mask.shape[2], virtual), dtype=dtype, device=device)
        return {
            "attention_mask": torch.cat([seen, mask], dim=3),
            "position_ids": positions + virtual,
            "past_key_values": cache,
            "use_cache": True,
        }

    @property
    def acts_untrained(self) -> bool:
        """Whether it changes what the backbone says before it has learnt anything."""
        return self._prefix

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """The bare backbone within the block."""
        with ExitStack() as without:
            if self.peft is not None:
                without.enter_context(self.peft.disable_adapter())
            self._hooks.close()
            self._off = True
            try:
                yield
            finally:
                self._off = False
                if self._bottlenecks is not None:
                    self._hooks.enter_context(self._bottlenecks.attached())

    def detach(self) -> None:
        """Leave the backbone as it was."""
        self._hooks.close()
        if self.peft is not None and not self._prefix:
            self.peft.unload()

    def tensors(self) -> dict[str, Tensor]:
        """The adapter's weights by the names that its file gives them."""
        of_peft = {} if self.peft is None else get_peft_model_state_dict(self.peft)
        of_ours = {} if self._bottlenecks is None else self._bottlenecks.tensors()
        return {**of_peft, **of_ours}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take weights that `tensors()` of the same adapter gave."""
        if self.peft is not None:
            own = get_peft_model_state_dict(self.peft)
            set_peft_model_state_dict(self.peft, {name: tensors[name] for name in own})
        if self._bottlenecks is not None:
            self._bottlenecks.load_tensors(tensors)

    def config(self) -> dict[str, Any]:
        """What `adapter_config.json` says of it."""
        of_ours = (
            {} if self._bottlenecks is None else self._bottlenecks.config.model_dump(mode="json")
        )
        if self.peft is None:
            return of_ours
        with tempfile.TemporaryDirectory() as folder:
            self.peft.peft_config["default"].save_pretrained(folder)
            path = Path(folder) / "adapter_config.json"
            of_peft: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        # A path of the machine that trained says nothing elsewhere; the fingerprint says which.
        of_peft |= {"base_model_name_or_path": None, "inference_mode": True}
        if isinstance(modules := of_peft.get("target_modules"), list):
            of_peft["target_modules"] = sorted(modules)  # PEFT keeps a set: no order of its own
        if not of_ours:
            return of_peft
        return {"peft_type": "HYBRID", "lora": of_peft, "bottleneck": of_ours}


def attach(
    model: Any, spec: TrainSpec, layers: Sequence[int], invocation: Sequence[int]
) -> Attached:
    """Put a fresh adapter onto `model`; everything else is frozen.

    `invocation` are the tokens that a prompt ends with, which an activated adapter names.
    Raises `SkillError` for modules or layers that the method cannot adapt.
    """
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    if spec.method == "head":
        return Attached(None)
    if spec.method == "prefix":
        return _prefix(model, spec, layers)
    bottlenecks = None
    if spec.method in ("bottleneck", "hybrid"):
        config = BottleneckConfig(
            placement=spec.placement,
            reduction_factor=spec.reduction_factor,
            layers_to_transform=list(layers),
        )
        bottlenecks = Bottlenecks(model, config).to(model.device)
        if spec.method == "bottleneck":
            return Attached(None, bottlenecks)
    activated = spec.method == "alora"
    peft = get_peft_model(
        model,
        LoraConfig(
            r=spec.rank,
            lora_alpha=spec.alpha,
            lora_dropout=0.0 if activated else spec.dropout,
            use_dora=spec.method == "dora",
            target_modules=list(module_names(model, spec)),
            layers_to_transform=list(layers),
            layers_pattern="layers",
            task_type="CAUSAL_LM",
        ),
    )
    if not activated:
        return Attached(peft, bottlenecks)
    # PEFT's own activation looks for the tokens in each row; a pack has many rows in one.
    config_: Any = peft.peft_config["default"]
    config_.alora_invocation_tokens = list(invocation)
    active = ActiveTokens()
    for module in peft.modules():
        if hasattr(module, "lora_dropout"):
            module.lora_dropout = nn.ModuleDict({"default": active})
    return Attached(peft, active=active)


def _prefix(model: Any, spec: TrainSpec, layers: Sequence[int]) -> Attached:
    check_prefix_layers(layers, int(model.config.num_hidden_layers))
    config = PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=spec.virtual_tokens, prefix_projection=False
    )
    peft = get_peft_model(model, config)
    # Keys and values of ordinary size would drown the document's; small ones leave it readable.
    with torch.no_grad():
        for parameter in peft.prompt_encoder.parameters():
            parameter.mul_(0.1)
    return Attached(peft)


def check_prefix_layers(layers: Sequence[int], count: int) -> None:
    """Raises `SkillError` where a prefix is to act on some of the `count` layers only."""
    if len(layers) != count:
        raise SkillError(
            "a prefix conditions every layer",
            where="train.yaml",
            hint="write `layers: all`, or choose another method",
        )


def module_names(model: Any, spec: TrainSpec) -> tuple[str, ...]:
    """The last names of the modules to adapt, as `spec.modules` says.

    Raises `SkillError` for one that the backbone does not have: PEFT is content if any of the names
    matches, and would leave the others out in silence.
    """
    layer = model.model.layers[-1]
    known = tuple(
        name.rpartition(".")[2]
        for name, module in layer.named_modules()
        if isinstance(module, nn.Linear)
    )
    if spec.modules == "all":
        return known
    if missing := set(spec.modules) - set(known):
        raise SkillError(
            f"modules: the backbone has no {', '.join(sorted(missing))}",
            where="train.yaml",
            hint="leave `modules` out for all linear modules of a layer",
        )
    return spec.modules
