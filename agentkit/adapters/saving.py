"""Adapters of agentkit's own kinds, written to a folder in the form that they are read in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from agentkit.adapters.kinds import AdapterConfig
from agentkit.adapters.shapes import check_shapes
from agentkit.adapters.tensor_file import BACKBONE_KEY


def save_adapter(
    folder: Path, config: AdapterConfig, tensors: Mapping[str, Tensor], *, backbone: str
) -> Path:
    """Write `adapter_config.json` and `adapter_model.safetensors` to `folder`; returns it.

    `tensors` are `Bottlenecks.tensors()`, for a hybrid together with those of
    `peft.get_peft_model_state_dict`; `backbone` is the fingerprint of the one trained on. Raises
    `AdapterError` if they are not those of the config.
    """
    check_shapes({name: tuple(t.shape) for name, t in tensors.items()}, config, str(folder))
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
        folder / "adapter_model.safetensors",
        metadata={"format": "pt", BACKBONE_KEY: backbone},
    )
    values = config.model_dump(mode="json", exclude_none=True)
    text = json.dumps(values, indent=2, sort_keys=True)
    (folder / "adapter_config.json").write_text(text + "\n", encoding="utf-8")
    return folder
