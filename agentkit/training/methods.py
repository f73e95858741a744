"""Ways to adapt a backbone: each puts its trainable parts into the model, in place.

| method | what is trained | what it shares of a document |
|---|---|---|
| `lora` | low-rank updates (https://arxiv.org/abs/2106.09685) | layers below the adapted ones |
| `dora` | the same with magnitudes apart (https://arxiv.org/abs/2402.09353) | the same |
| `alora` | LoRA from the invocation on (https://arxiv.org/abs/2504.12397) | everything before it |
| `prefix` | keys and values of virtual tokens (https://arxiv.org/abs/2101.00190) | nothing |
"""

from __future__ import annotations

from collections.abc import Sequence
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
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

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
    """Stateful: a backbone with its adapter, and what each pack needs to be read under it."""

    def __init__(self, peft: PeftModel, active: ActiveTokens | None = None) -> None:
        self.peft = peft
        self._active = active
        self._prefix = bool(peft.active_peft_config.is_prompt_learning)

    @property
    def apart(self) -> nn.Module | None:
        """The part of the adapter that is no module of the decoder."""
        return self.peft.prompt_encoder if self._prefix else None

    def inputs(self, pack: Pack, dtype: torch.dtype) -> dict[str, Any]:
        """What the decoder takes besides the states of a pack."""
        if self._active is not None:
            self._active.mask = torch.tensor(pack.active, dtype=dtype)[None, :, None]
        mask, positions = pack.mask(dtype), torch.tensor([pack.positions])
        if not self._prefix:
            return {"attention_mask": mask, "position_ids": positions, "use_cache": False}
        cache: Any = self.peft.get_prompt(batch_size=1)
        virtual = cache.get_seq_length()
        seen = torch.zeros((1, 1, mask.shape[2], virtual), dtype=dtype)
        return {
            "attention_mask": torch.cat([seen, mask], dim=3),
            "position_ids": positions + virtual,
            "past_key_values": cache,
            "use_cache": True,
        }


def attach(
    model: Any, spec: TrainSpec, layers: Sequence[int], invocation: Sequence[int]
) -> Attached:
    """Put a fresh adapter into `model`, in place; everything else is frozen.

    `invocation` are the tokens that a prompt ends with, which an activated adapter names.
    Raises `SkillError` for modules or layers that the method cannot adapt.
    """
    count = int(model.config.num_hidden_layers)
    if spec.method == "prefix":
        if len(layers) != count:
            raise SkillError(
                "a prefix conditions every layer",
                where="train.yaml",
                hint="write `layers: all`, or choose another method",
            )
        prefix = PrefixTuningConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=spec.virtual_tokens, prefix_projection=False
        )
        attached = Attached(get_peft_model(model, prefix))
        # Keys and values of ordinary size would drown the document's; small ones leave it readable.
        with torch.no_grad():
            for parameter in attached.peft.prompt_encoder.parameters():
                parameter.mul_(0.1)
        return attached
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
        return Attached(peft)
    # PEFT's own activation looks for the tokens in each row; a pack has many rows in one.
    config: Any = peft.peft_config["default"]
    config.alora_invocation_tokens = list(invocation)
    active = ActiveTokens()
    for module in peft.modules():
        if hasattr(module, "lora_dropout"):
            module.lora_dropout = nn.ModuleDict({"default": active})
    return Attached(peft, active)


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


def start_from(attached: Attached, folder: Path) -> None:
    """Give a fresh adapter the weights of a trained one; what only it has stays fresh.

    Raises `SkillError` if the folder has no adapter of this method and size, or none of its
    tensors fits a layer that is adapted here.
    """
    try:
        trained = load_file(folder / "adapter_model.safetensors")
    except (OSError, SafetensorError) as error:
        raise SkillError(
            "its adapter cannot be read",
            where=str(folder / "adapter_model.safetensors"),
            hint="start_from names the folder of a trained skill",
        ) from error
    fresh = get_peft_model_state_dict(attached.peft)
    shared = {name: tensor for name, tensor in trained.items() if name in fresh}
    for name, tensor in shared.items():
        if tensor.shape != fresh[name].shape:
            raise SkillError(
                f"{name} is {tuple(tensor.shape)}, here {tuple(fresh[name].shape)}",
                where=str(folder),
                hint="start_from needs an adapter of the same rank",
            )
    if not shared:
        raise SkillError("none of its tensors fits", where=str(folder))
    set_peft_model_state_dict(attached.peft, fresh | shared)
