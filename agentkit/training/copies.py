"""Copies of a skill folder to train in, which leave the folder as it is."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from agentkit.errors import SkillError
from agentkit.training.spec import change_train_spec

WRITTEN = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "head.safetensors",
    "metrics.json",
    "README.md",
    "*.svg",
)
"""What a training writes into a skill folder."""


def copy_untrained(
    skill: Path, into: Path, changes: Mapping[str, Any] = MappingProxyType({})
) -> Path:
    """A copy of a skill folder without what a training writes: `into/NAME`.

    `changes` are settings that the copy's train.yaml has otherwise. A copy that is there gets the
    folder's files anew and keeps what a training wrote, so that a training of the same goes on and
    one of anything else begins. Raises `SkillError` where another folder's copy would be the same,
    or the changed train.yaml cannot be trained by.
    """
    copy = into / skill.resolve().name
    if copy.resolve() == skill.resolve():
        raise SkillError("the copy would be the folder itself", where=str(copy))
    if copy.resolve().is_relative_to(skill.resolve()):
        raise SkillError(
            "the copy would be a part of the folder that it is made of",
            where=str(copy),
            hint="name a folder beside it with --out",
        )
    shutil.copytree(skill, copy, ignore=shutil.ignore_patterns(*WRITTEN), dirs_exist_ok=True)
    if changes:
        change_train_spec(skill / "train.yaml", changes, copy / "train.yaml")
    return copy
