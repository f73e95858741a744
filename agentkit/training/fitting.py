"""Packs to trained tensors: transformers' Trainer over a pack model, with small checkpoints."""

from __future__ import annotations

import hashlib
import json
import math
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from transformers import (
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_callback import PrinterCallback

from agentkit.adapters.heads import Head
from agentkit.training.lower import LowerStates
from agentkit.training.model import PackModel, trained_tensors
from agentkit.training.packs import Pack
from agentkit.training.spec import TrainSpec, steps_an_epoch

_TRAINED = "trained.safetensors"
_CLOCK = "seconds"
_MANY = 50
"""Steps from which on every tenth is shown: of fewer, every one."""
_SAVE_SECONDS = 180.0
_WARM = 0.05
"""Share of a training in which the rate goes up."""


class _Packs(torch.utils.data.Dataset[dict[str, Any]]):
    def __init__(self, packs: Sequence[Pack], states: LowerStates) -> None:
        self._packs, self._states = packs, states

    def __len__(self) -> int:
        return len(self._packs)

    def __getitem__(self, at: int) -> dict[str, Any]:
        pack = self._packs[at]
        return {"pack": pack, "lower": self._states.get(pack)}


class _Clock:
    """Stateful: the seconds that a training took, over all of its starts."""

    def __init__(self, before: str | None) -> None:
        self._began = time.monotonic()
        if before is not None:
            self._began -= float((Path(before) / _CLOCK).read_text(encoding="ascii"))

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def save(self, folder: Path) -> None:
        (folder / _CLOCK).write_text(f"{self.seconds:.1f}", encoding="ascii")


class _PackTrainer(Trainer):
    """Trainer whose checkpoints hold the trained tensors only, not the frozen backbone's."""

    clock: _Clock

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        save_file(
            {name: t.contiguous() for name, t in trained_tensors(self.model).items()},
            folder / _TRAINED,
        )
        self.clock.save(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        saved = load_file(Path(resume_from_checkpoint) / _TRAINED)
        with torch.no_grad():
            for name, parameter in trained_tensors(self.model).items():
                parameter.copy_(saved[name])


class _Limit(TrainerCallback):
    """Ends training when its minutes are over."""

    def __init__(self, clock: _Clock, minutes: float) -> None:
        self._clock = clock
        self._seconds = 60 * minutes

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> TrainerControl:
        if self._clock.seconds > self._seconds:
            control.should_training_stop = True
            control.should_log = True  # where it ended
            control.should_save = True  # what comes after it may be killed
        return control


class _Saves(TrainerCallback):
    """Stateful: asks for a checkpoint where the last one is minutes ago, however few steps."""

    def __init__(self) -> None:
        self._saved = time.monotonic()

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> TrainerControl:
        if time.monotonic() - self._saved > _SAVE_SECONDS:
            control.should_save = True
        return control

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        self._saved = time.monotonic()


class _Interrupts(TrainerCallback):
    """Stateful: ends training at the next step if an interrupt was lost, while it is entered.

    Python gives up an exception that is raised while it frees an object, or in a callback of native
    code: an interrupt that comes then would do nothing.
    """

    def __init__(self) -> None:
        self._seen = False
        self._before: Any = None

    def __enter__(self) -> _Interrupts:
        if threading.current_thread() is threading.main_thread():  # no other may set a handler
            self._before = signal.getsignal(signal.SIGINT)
            if callable(self._before):
                signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        if callable(self._before):
            signal.signal(signal.SIGINT, self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._seen = True
        self._before(number, frame)

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        if self._seen:
            raise KeyboardInterrupt


class _Report(TrainerCallback):
    """Stateful: shows the loss as it falls, and what is left at the pace of this start."""

    def __init__(self, console: Console, clock: _Clock, minutes: float | None) -> None:
        self._console = console
        self._clock = clock
        self._limit = math.inf if minutes is None else 60 * minutes
        self._first = 0
        self._began = clock.seconds

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        self._first, self._began = state.global_step, self._clock.seconds

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs and "loss" in logs:
            spent, done = self._clock.seconds, state.global_step - self._first
            pace = (spent - self._began) / max(1, done)
            steps_left = pace * (state.max_steps - state.global_step)
            left = max(0.0, min(steps_left, self._limit - spent))
            self._console.print(
                f"step {state.global_step}/{state.max_steps}  "
                f"loss {float(logs['loss']):.4f}  rate {float(logs['learning_rate']):.2e}  "
                f"{left / 60:.1f} min left"
            )


def fit(
    model: PackModel,
    packs: Sequence[Pack],
    states: LowerStates,
    spec: TrainSpec,
    *,
    checkpoints: Path,
    console: Console,
    device: torch.device,
) -> list[dict[str, float]]:
    """Train what is trainable in `model`; returns the loss by step.

    Goes on from the last whole checkpoint in `checkpoints`, and leaves one there every 25 steps,
    every three minutes, and where the minutes of the training end.
    """
    optimizer = optimizer_of(model, spec)
    steps = max(1, round(spec.epochs * steps_an_epoch(len(packs), spec.packs_per_step)))
    before = _last_whole(checkpoints)
    clock = _Clock(before)

    def rate(step: int) -> float:
        spent = clock.seconds / (60 * spec.max_minutes) if spec.max_minutes is not None else 0.0
        return share_of_rate(step, steps, spent)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    callbacks: list[TrainerCallback] = [_Report(console, clock, spec.max_minutes), _Saves()]
    if spec.max_minutes is not None:
        callbacks.append(_Limit(clock, spec.max_minutes))
    args = TrainingArguments(
        output_dir=str(checkpoints),
        per_device_train_batch_size=1,
        gradient_accumulation_steps=spec.packs_per_step,
        max_steps=steps,
        max_grad_norm=1.0,
        save_steps=25,
        save_total_limit=2,
        logging_steps=10 if steps >= _MANY else 1,
        report_to="none",
        remove_unused_columns=False,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        use_cpu=device.type == "cpu",
        seed=spec.seed,
        data_seed=spec.seed,
    )
    args._n_gpu = min(args.n_gpu, 1)  # several would share out a batch, which here is one pack
    trainer = _PackTrainer(
        model=model,
        args=args,
        train_dataset=_Packs(packs, states),
        data_collator=lambda items: items[0],
        optimizers=(optimizer, schedule),
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.clock = clock
    if before is not None:
        console.print(f"goes on from step {_step(Path(before))} of an earlier start")
    with _Interrupts() as interrupts:
        trainer.add_callback(interrupts)
        trainer.train(resume_from_checkpoint=before)
    if trainer.state.global_step < steps:
        console.print(f"ended by max_minutes at step {trainer.state.global_step} of {steps}")
    return [
        {"step": entry["step"], "loss": round(float(entry["loss"]), 5)}
        for entry in trainer.state.log_history
        if "loss" in entry
    ]


def optimizer_of(model: PackModel, spec: TrainSpec) -> torch.optim.Optimizer:
    """Adapter and head, each at its own rate.

    Parameters come in the model's own order: a checkpoint knows their moments by place alone.
    """
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    of_head = [p for name, p in trained if name.startswith("head.")]
    others = [p for name, p in trained if not name.startswith("head.")]
    groups = [
        {"params": others, "lr": spec.rate},
        {"params": of_head, "lr": spec.head_learning_rate},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], weight_decay=0.01)


def share_of_rate(step: int, steps: int, spent: float) -> float:
    """Up in a twentieth of the training, then down to nothing when steps or minutes are over.

    `spent` is the share of the minutes that is used up. Minutes that end before the steps do
    shorten the way up as well.
    """
    done = max(step / steps, spent)
    up = max((step + 1) / max(1, round(_WARM * steps)), done / _WARM)
    return min(up, max(0.0, 1.0 - done))


def checkpoint_key(spec: TrainSpec, packs: Sequence[Pack], backbone: str, head: Head | None) -> str:
    """Names what a training is of, so that a checkpoint of another one is never gone on from."""
    kind = head.kind if head is not None else ""
    # What comes after it or stands beside it, and how much a search or the lower layers' states
    # may take.
    apart: Any = {
        "calibration": True,
        "cache_gigabytes": True,
        "frozen_baseline": True,
        "search": {"minutes", "trials"},
    }
    said = spec.model_dump_json(exclude=apart)
    digest = hashlib.sha256(f"{backbone}\n{kind}\n{said}".encode())
    for pack in packs:
        digest.update(repr(pack).encode())
    return digest.hexdigest()[:16]


def _last_whole(checkpoints: Path) -> str | None:
    """The newest checkpoint that was written to its end; Trainer writes its own state last."""
    whole: dict[int, Path] = {}
    for state in checkpoints.glob("checkpoint-*/trainer_state.json"):
        try:
            whole[_step(state.parent)] = state.parent
        except ValueError:
            continue  # cut short when its process was killed
    return str(whole[max(whole)]) if whole else None


def _step(checkpoint: Path) -> int:
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    return int(state["global_step"])
