"""Skill folders with real, tiny adapters."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

CONFIG = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "r": 2,
    "lora_alpha": 4,
    "target_modules": ["up_proj"],
}

SKILL_MD = """---
name: {name}
description: Finds clauses in contracts.
---
Mark the clauses.
"""

SKILL_YAML = """\
input:
  type: object
  properties:
    document: {type: string}
  required: [document]
output: {type: string, maxLength: 100}
utterances:
  - find the clauses
prompt:
  question: "Which clauses are in {{ document }}?"
"""


@pytest.fixture
def write_skill() -> Callable[..., Path]:
    """Writes a skill folder; `seed` decides the weights, a text of None leaves its file out."""

    def write(
        folder: Path,
        *,
        seed: int = 0,
        skill_md: str | None = SKILL_MD,
        skill_yaml: str | None = SKILL_YAML,
        config: dict | None = None,
    ) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        if skill_md is not None:
            (folder / "SKILL.md").write_text(skill_md.format(name=folder.name), encoding="utf-8")
        if skill_yaml is not None:
            (folder / "skill.yaml").write_text(skill_yaml, encoding="utf-8")
        (folder / "adapter_config.json").write_text(json.dumps(config or CONFIG))
        write_weights(folder / "adapter_model.safetensors", seed)
        return folder

    return write


def write_weights(path: Path, seed: int) -> None:
    numbers = np.random.default_rng(seed)
    key = "base_model.model.model.layers.0.mlp.up_proj"
    save_file(
        {
            f"{key}.lora_A.weight": numbers.standard_normal((2, 8), dtype=np.float32),
            f"{key}.lora_B.weight": numbers.standard_normal((16, 2), dtype=np.float32),
        },
        path,
    )
