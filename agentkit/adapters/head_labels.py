"""Which answers a task head was trained to give: noted in its file, for `skill.yaml` may change.

A head knows its answers by their place alone. Without a note of their names, another order in
`skill.yaml` would give every answer another's name, and nothing would say so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from agentkit.errors import AdapterError
from agentkit.skill.manifest import Manifest, MarksAnswer

LABELS_KEY = "agentkit.labels"
"""Metadata key of `head.safetensors` that holds the names, a JSON list in the head's order."""


def head_labels(manifest: Manifest) -> tuple[str, ...]:
    """What a head for this skill answers, in its order; empty for a skill without a head.

    Marks are named with their unit, those of sentences first.
    """
    answer = manifest.answer
    if isinstance(answer, MarksAnswer):
        named = [f"{label.unit}: {label.name}" for label in answer.labels]
        return tuple(sorted(named, key=lambda name: not name.startswith("sentence: ")))
    return manifest.head_choices


def labels_metadata(manifest: Manifest) -> dict[str, str]:
    """The note of a head that was trained for this skill."""
    return {LABELS_KEY: json.dumps(head_labels(manifest), ensure_ascii=False)}


def check_labels(metadata: Mapping[str, str], manifest: Manifest, *, where: str) -> None:
    """Raises `AdapterError` if a head was trained to give other answers than `skill.yaml` has.

    `metadata` is its file's. One without a note passes.
    """
    if LABELS_KEY not in metadata:
        return
    hint = "write the answers in skill.yaml as they were, or train the skill again"
    try:
        trained = json.loads(metadata[LABELS_KEY])
    except (ValueError, RecursionError):
        trained = None
    if not isinstance(trained, list) or not all(isinstance(name, str) for name in trained):
        raise AdapterError(f"{LABELS_KEY} is no JSON list of names", where=where)
    wanted = head_labels(manifest)
    for number, (had, has) in enumerate(zip(trained, wanted, strict=False), start=1):
        if had != has:
            raise AdapterError(
                f"the head's answer {number} was trained as {had!r}; in skill.yaml it is {has!r}",
                where=where,
                hint=hint,
            )
    if len(trained) != len(wanted):
        raise AdapterError(
            f"the head was trained for {len(trained)} answers; skill.yaml has {len(wanted)}",
            where=where,
            hint=hint,
        )
