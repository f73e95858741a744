"""How much memory a training takes, roughly, and the plainest way to train that fits.

Every figure is in gigabytes and of a training that saves where it can: packs of 1,024 tokens, the
upper third adapted, activations computed again. It tells what is hopeless from what is worth a
try; a training's own `metrics.json` says what it took.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

from agentkit.advise.situation import Situation
from agentkit.errors import InputError

Quantization: TypeAlias = Literal["int8", "nf4"] | None

PROCESS = 0.5
"""Held whatever is trained: Python with PyTorch, Transformers and PEFT, which
`benchmarks/training.py` measures as `import_memory`; on a GPU the context takes about as much."""
HELD: dict[Quantization, float] = {None: 1.0, "int8": 0.55, "nf4": 0.35}
"""Share of the bfloat16 weights that is held: the embeddings and scales stay as they are. On a CPU
a process is said to hold the pages of the weights' file too, until the system wants them back."""
UNROUNDED = 0.25
"""Beside quantised weights: the ones in use are unrounded for every product, and the product is
scaled in a copy. On a small backbone that is more than what rounding saves."""
READING = (0.6, 0.1)
"""States of one reading without gradients, and what the allocator keeps of them: for any backbone,
and for each gigabyte of its weights."""
TRAINING = (0.6, 0.25)
"""The same with gradients through the adapted layers, the adapter and its optimiser: no more on a
small backbone, whose lower layers are read before anything is trained."""


@dataclass(frozen=True, slots=True)
class Way:
    """Whether an adapter is trained or a task head alone, and how the weights are held."""

    adapter: bool
    quantization: Quantization

    def takes(self, weights: float) -> float:
        """Gigabytes for a backbone of so many in bfloat16."""
        fixed, share = TRAINING if self.adapter else READING
        beside = UNROUNDED if self.quantization else 0.0
        return PROCESS + (HELD[self.quantization] + share) * weights + fixed + beside


def way(situation: Situation) -> Way:
    """The first that fits: an adapter before a head alone, exact weights before rounded ones.

    Raises `InputError` naming the least memory that the situation needs where none fits.
    """
    for one in _ways(situation):
        if one.takes(situation.weights) <= situation.memory:
            return one
    raise InputError(
        f"a backbone of {situation.parameters:.3g} parameters cannot be trained in "
        f"{situation.memory:g} GB: the most frugal way takes about {least(situation):g} GB",
        where="--memory",
        hint="give it more memory, or take a smaller backbone",
    )


def least(situation: Situation) -> float:
    """Gigabytes that the most frugal way takes which the situation allows, rounded up to tenths."""
    return math.ceil(10 * min(one.takes(situation.weights) for one in _ways(situation))) / 10


def head_serves(situation: Situation) -> bool:
    """Whether a task head can give the answers, and has rows enough to begin with nothing."""
    own = situation.deployment == "agentkit" and situation.answer != "text"
    return own and situation.rows >= 200


def _ways(situation: Situation) -> list[Way]:
    """From the plainest on."""
    forms: tuple[Quantization, ...] = (None, "int8", "nf4")
    trained = (True, False) if head_serves(situation) else (True,)
    return [Way(adapter, form) for adapter in trained for form in forms]
