"""What advice depends on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

from agentkit.errors import InputError

Answer: TypeAlias = Literal["choice", "marks", "text"]
Updates: TypeAlias = Literal["rarely", "monthly", "weekly", "daily"]
Deployment: TypeAlias = Literal["agentkit", "vllm"]


@dataclass(frozen=True, slots=True)
class Situation:
    """What is to be trained, on what, and where it will serve."""

    rows: int
    """Labelled rows of the task."""
    documents: int | None = None
    """Different documents among them; None: as many as rows."""
    document_tokens: int = 500
    """Of a usual document or text."""
    tasks: int = 1
    """Skills that share the backbone, this one included."""
    memory: float = 16.0
    """Gigabytes that a training may take."""
    gpu: bool = False
    updates: Updates = "rarely"
    """How often new rows come in and the skill is trained again."""
    deployment: Deployment = "agentkit"
    answer: Answer = "choice"
    parameters: float = 135e6
    """Of the backbone."""
    layers: int = 30
    """Of the backbone."""

    @property
    def weights(self) -> float:
        """Gigabytes of the backbone in bfloat16."""
        return self.parameters * 2 / 1e9

    @property
    def questions(self) -> float:
        """Rows per document."""
        return self.rows / (self.documents or self.rows)

    def check(self) -> None:
        """Raise `InputError` for what cannot be."""
        least: dict[str, tuple[float, int]] = {
            "rows": (self.rows, 1),
            "tasks": (self.tasks, 1),
            "documents": (1 if self.documents is None else self.documents, 1),
            "document-tokens": (self.document_tokens, 1),
            "parameters": (self.parameters, 1),
            "layers": (self.layers, 3),
        }
        for name, (value, bound) in least.items():
            if not (math.isfinite(value) and value >= bound):
                raise InputError(
                    f"must be a number of at least {bound}, not {value}", where=f"--{name}"
                )
        if not (math.isfinite(self.memory) and self.memory > 0):
            raise InputError(
                f"must be a number of gigabytes above 0, not {self.memory}", where="--memory"
            )
