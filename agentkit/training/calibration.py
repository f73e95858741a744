"""A trained choice head to one that knows what its answers are worth: its file, with and without.

What the head said of rows comes from elsewhere, for only the product's own way to answer tells how
sure it is there.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor

from agentkit.adapters.heads import CALIBRATION, KIND, ChoiceHead
from agentkit.adapters.novelty import NoveltyCalibration, calibrated
from agentkit.adapters.tensor_file import read_tensors
from agentkit.errors import SkillError
from agentkit.training.curve import Heard, fit_curve

Floats = NDArray[np.float32]

_REACH = 0.95
"""Share of a part's questions that a curve reaches; beyond them a few would say how it goes on."""


@dataclass(frozen=True, slots=True, eq=False)
class Said:
    """What a head without calibration said of some questions, and what would have been right."""

    chances: Floats
    """`(n, choices)`, each row sums to one."""
    questions: Floats
    """`(n, 2 * hidden)`: features of the questions, as `question_features` gives them."""
    gold: NDArray[np.int64]
    """`(n,)`: numbers of the right choices."""


@dataclass(frozen=True, slots=True, eq=False)
class Calibrated:
    """The chances of a part by the calibration that was fitted, and how new its questions are."""

    chances: Floats
    novelty: Floats


@dataclass(frozen=True, slots=True, eq=False)
class PlainHead:
    """A choice head's file without an earlier calibration."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    before: dict[str, Tensor]
    """The tensors of the calibration that the file had."""

    @classmethod
    def read(cls, file: Path) -> PlainHead:
        """Raises `SkillError` where there is none, or a head of another kind, and `AdapterError`
        as `read_tensors` does."""
        if not file.exists():
            raise SkillError(
                "there is no task head to calibrate", where=str(file), hint="train the skill first"
            )
        read = read_tensors(file)
        if read.metadata.get(KIND) != ChoiceHead.kind:
            raise SkillError(f"the head is of kind {read.metadata.get(KIND)!r}", where=str(file))
        plain = {n: t for n, t in read.tensors.items() if not n.startswith(CALIBRATION)}
        before = {n: t for n, t in read.tensors.items() if n not in plain}
        return cls(plain, dict(read.metadata), before)

    def knowing(
        self, questions: Floats | None, choices: int, silent: Collection[int]
    ) -> NoveltyCalibration:
        """A calibration that changes nothing yet and knows questions of the training.

        `questions` are their features `(k, 2 * hidden)`; None takes those that the file's
        calibration knew. `silent` are the numbers of the choices that say nothing speaks of a
        question.
        """
        if questions is not None:
            made = NoveltyCalibration.of(torch.from_numpy(questions), choices, silent)
        else:
            width = 2 * ChoiceHead.like(self.tensors).hidden
            made = NoveltyCalibration.of(torch.zeros(0, width), choices, silent)
            if self.before:
                made.center.copy_(self.before[f"{CALIBRATION}center"])
                made.known = self.before[f"{CALIBRATION}known"].float()
        made.known.copy_(made.known.half())  # as stored: what is fitted is served
        return made

    def write(self, file: Path, calibration: NoveltyCalibration | None = None) -> None:
        """Write it, calibrated or not: the file is whole or stays what it was."""
        added = calibration.state_dict() if calibration is not None else {}
        tensors = self.tensors | {
            # Directions of questions need no more digits, and are most of what is stored.
            CALIBRATION + name: (value.half() if name == "known" else value).contiguous()
            for name, value in added.items()
        }
        fresh = file.with_suffix(".fresh")
        fresh.write_bytes(save(tensors, self.metadata))
        fresh.replace(file)


def fit_calibration(
    calibration: NoveltyCalibration, parts: Mapping[str, Said], silence: float | None = None
) -> dict[str, Calibrated]:
    """Fit a calibration that changes nothing yet, in place; returns what it makes of the parts.

    `silence` is as `fit_curve` takes it.
    """
    apart = [calibration.novelty(torch.from_numpy(said.questions)) for said in parts.values()]
    calibration.furthest.fill_(max(float(one.quantile(_REACH)) for one in apart))
    heard = {
        name: Heard(
            logits=torch.from_numpy(said.chances).clamp(min=1e-7).log(),
            novelty=calibration.novelty(torch.from_numpy(said.questions)),
            gold=torch.from_numpy(said.gold),
        )
        for name, said in parts.items()
    }
    calibration.curve.copy_(fit_curve(list(heard.values()), calibration.silent, silence))
    return {
        name: Calibrated(
            calibrated(one.logits, one.novelty, calibration.silent, calibration.curve)
            .exp()
            .numpy(),
            one.novelty.numpy(),
        )
        for name, one in heard.items()
    }
