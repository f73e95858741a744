"""A trained choice head to one that knows what its answers are worth: its file, with and without.

What the head said of rows comes from elsewhere, for only the product's own way to answer tells how
sure it is there.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
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
from agentkit.output import most_telling
from agentkit.training.curve import Heard, fit_curve

Floats = NDArray[np.float32]

_REACH = 0.95
"""Share of a part's questions that a curve reaches; beyond them a few would say how it goes on."""
_ROUNDS = 10
"""A few rows may go to and fro between two windows: from then on they stay where they are."""


@dataclass(frozen=True, slots=True, eq=False)
class Said:
    """What a head without calibration said of some rows, and what would have been right.

    A row is asked of each window of its document that is read; one of them decides.
    """

    chances: Floats
    """`(m, choices)`: of each window, each sums to one."""
    questions: Floats
    """`(m, 2 * hidden)`: features of the question there, as `question_features` gives them."""
    counts: NDArray[np.int64]
    """`(n,)`: how many of the windows, in order, are a row's; each has one."""
    gold: NDArray[np.int64]
    """`(n,)`: numbers of the right choices."""

    def deciding(self, chances: Floats, silent: Sequence[int]) -> NDArray[np.int64]:
        """`(n,)`: which window decides each row, were `chances` `(m, choices)` what is said."""
        starts = np.concatenate([[0], self.counts.cumsum()[:-1]])
        windows = np.split(chances, starts[1:])
        return starts + np.array([most_telling(own, silent) for own in windows], dtype=np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class Calibrated:
    """The rows of a part without and with the calibration that was fitted, as they are served."""

    before: Floats
    """`(n, choices)`"""
    after: Floats
    """`(n, choices)`"""
    novelty: Floats
    """`(n,)`: how new the questions are, in the windows that decide."""


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

    Which window decides a row depends on the calibration, and that on the windows that decide: each
    is found for the other in turn until both stay. `silence` is as `fit_curve` takes it.
    """
    silent = [int(number) for number in calibration.silent.nonzero()[:, 0]]
    first = {name: said.deciding(said.chances, silent) for name, said in parts.items()}
    logits = {n: torch.from_numpy(said.chances).clamp(min=1e-7).log() for n, said in parts.items()}
    apart = {n: calibration.novelty(torch.from_numpy(said.questions)) for n, said in parts.items()}
    furthest = max(float(apart[name][at].quantile(_REACH)) for name, at in first.items())
    calibration.furthest.fill_(furthest)
    novelty = {name: one.clamp(max=furthest) for name, one in apart.items()}
    chances: dict[str, Floats] = {}
    decides = first
    for _ in range(_ROUNDS):
        heard = [
            Heard(logits[name][at], novelty[name][at], torch.from_numpy(parts[name].gold))
            for name, at in decides.items()
        ]
        calibration.curve.copy_(fit_curve(heard, calibration.silent, silence))
        before = decides
        decides = {}
        for name, said in parts.items():
            served = calibrated(logits[name], novelty[name], calibration.silent, calibration.curve)
            chances[name] = served.exp().numpy()
            decides[name] = said.deciding(chances[name], silent)
        if all((at == before[name]).all() for name, at in decides.items()):
            break
    return {
        name: Calibrated(
            before=said.chances[first[name]],
            after=chances[name][decides[name]],
            novelty=novelty[name].numpy()[decides[name]],
        )
        for name, said in parts.items()
    }
