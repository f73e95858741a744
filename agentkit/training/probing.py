"""Importance of a backbone's layers for a task, measured on a sample of its packs."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from agentkit.adapters.heads import Head
from agentkit.training.fitting import optimizer_of
from agentkit.training.layer_selection import (
    LayerChoice,
    best_layers,
    search_from_top,
)
from agentkit.training.methods import Attached, attach
from agentkit.training.model import PackModel
from agentkit.training.packs import Pack
from agentkit.training.spec import TrainSpec

_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")
_HEAD_EPOCHS = 3
_COMPARED = 4
"""Packs on which the change of attention is looked at."""

Step = Callable[[str], None]


def choose_layers(
    model: Any, spec: TrainSpec, packs: Sequence[Pack], head: Head | None, *, said: Step
) -> LayerChoice:
    """The layers that matter most by `spec.importance`.

    The model is left as it was. `said` is told of each step.
    """
    count = int(model.config.num_hidden_layers)
    sample = sample_packs(packs, spec.probe_packs)
    # Importance is of the layers, whatever method is to act on them.
    probe = Probe(model, spec.model_copy(update={"method": "lora"}), head, said)
    size = min(spec.layer_count or -(-count // 3), count)
    if spec.importance == "gradient":
        return best_layers(probe.gradients(sample), size, "gradient")
    if spec.importance == "attention":
        return best_layers(probe.attention_changes(sample), size, "attention")
    learnt, held = parted(sample)

    def loss_of(first: int) -> float:
        layers = range(first, count)
        return probe.short_loss(layers, learnt, held) if layers else probe.head_loss(learnt, held)

    return search_from_top(count, max(1, count // 6), loss_of)


def sample_packs(packs: Sequence[Pack], size: int) -> list[Pack]:
    """About `size` packs, evenly taken."""
    return list(packs[:: -(-len(packs) // size) or 1])


def parted(sample: Sequence[Pack]) -> tuple[list[Pack], list[Pack]]:
    """Two thirds to learn from, one to measure on (all for both, where there is only one)."""
    held = list(sample[::3])
    return [pack for at, pack in enumerate(sample) if at % 3] or held, held


class Probe:
    """Short trainings of fresh adapters on one model, which each leaves as it was."""

    def __init__(self, model: Any, spec: TrainSpec, head: Head | None, said: Step) -> None:
        self._model = model
        self._spec = spec.model_copy(update={"dropout": 0.0})
        self._head = head
        self._said = said
        self._count = int(model.config.num_hidden_layers)

    def gradients(self, packs: Sequence[Pack]) -> list[float]:
        """By layer the root mean square over packs of the norm of its fresh adapter's gradient."""
        model, attached = self._fresh(range(self._count))
        try:
            self._warm_head(model, attached, packs)
            sums = [0.0] * self._count
            for number, pack in enumerate(packs, start=1):
                model.zero_grad(set_to_none=True)
                model(pack, self._embedded(pack))["loss"].backward()
                for name, parameter in model.decoder.named_parameters():
                    found = _LAYER.search(name)
                    if found is not None and parameter.grad is not None:
                        sums[int(found[1])] += float(parameter.grad.float().square().sum())
                self._said(f"gradients: pack {number} of {len(packs)}")
            return [(total / len(packs)) ** 0.5 for total in sums]
        finally:
            attached.detach()

    def attention_changes(self, packs: Sequence[Pack]) -> list[float]:
        """By layer how far its attention's outputs move, relative to what they were."""
        model, attached = self._fresh(range(self._count))
        try:
            self._train(model, packs)
            changes = torch.zeros(self._count)
            compared = packs[:_COMPARED]
            for pack in compared:
                changes += self._changes(model, attached, pack)
            return [float(change) / len(compared) for change in changes]
        finally:
            attached.detach()

    def head_loss(self, learnt: Sequence[Pack], held: Sequence[Pack]) -> float:
        """Mean loss on `held` of the bare backbone, its head fitted to `learnt`."""
        model, attached = self._fresh([self._count - 1])
        try:
            self._warm_head(model, attached, learnt)
            return self._loss(model, held, "no layers")
        finally:
            attached.detach()

    def short_loss(
        self,
        layers: Sequence[int],
        learnt: Sequence[Pack],
        held: Sequence[Pack],
        *,
        half_way: Callable[[float], None] | None = None,
    ) -> float:
        """Mean loss on `held` after one pass over `learnt` with `layers` adapted.

        `half_way` is given the loss in the middle, and may end it by raising.
        """
        model, attached = self._fresh(layers)
        try:
            self._warm_head(model, attached, learnt)
            middle = len(learnt) // 2
            trained = self._train(model, learnt[:middle])
            if half_way is not None:
                half_way(self._loss(model, held, "half way"))
            self._train(model, learnt[middle:], trained)
            return self._loss(model, held, f"{len(layers)} layers from {min(layers)}")
        finally:
            attached.detach()

    # ------------------------------------------------------------ parts

    def _fresh(self, layers: Sequence[int]) -> tuple[PackModel, Attached]:
        torch.manual_seed(self._spec.seed)
        attached = attach(self._model, self._spec, layers, ())
        head = copy.deepcopy(self._head)  # each measure starts from the same head
        model = PackModel(
            self._model.model, self._model.lm_head, head, self._spec.evidence_weight, attached
        )
        return model, attached

    def _embedded(self, pack: Pack) -> Tensor:
        with torch.no_grad():
            embeddings = self._model.get_input_embeddings()
            ids = torch.tensor([pack.ids], device=embeddings.weight.device)
            states: Tensor = embeddings(ids)[0]
        return states

    def _warm_head(self, model: PackModel, attached: Attached, packs: Sequence[Pack]) -> None:
        """Fit the head to the bare backbone first: gradients through a random one say little."""
        if model.head is None or not list(model.head.parameters()):
            return
        with attached.disabled(), torch.no_grad():
            states = [model.states(pack, self._embedded(pack)) for pack in packs]
        optimizer = torch.optim.AdamW(model.head.parameters(), lr=self._spec.head_learning_rate)
        for _ in range(_HEAD_EPOCHS):
            for pack, hidden in zip(packs, states, strict=True):
                optimizer.zero_grad()
                loss: Any = model.loss(pack, hidden)
                if loss.requires_grad:  # else every input gives the choice, and teaches none
                    loss.backward()
                    optimizer.step()

    def _loss(self, model: PackModel, packs: Sequence[Pack], what: str) -> float:
        with torch.inference_mode():
            losses = [float(model(pack, self._embedded(pack))["loss"]) for pack in packs]
        loss = sum(losses) / len(losses)
        self._said(f"{what}: loss {loss:.4f}")
        return loss

    def _train(
        self,
        model: PackModel,
        packs: Sequence[Pack],
        optimizer: torch.optim.Optimizer | None = None,
    ) -> torch.optim.Optimizer:
        """One pass over the packs; gives the optimiser back, to go on with."""
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = optimizer or optimizer_of(model, self._spec)
        for number, pack in enumerate(packs, start=1):
            optimizer.zero_grad()
            loss: Any = model(pack, self._embedded(pack))["loss"]
            if loss.requires_grad:
                loss.backward()
                torch.nn.utils.clip_grad_norm_(trained, 1.0)
                optimizer.step()
            self._said(f"short training: pack {number} of {len(packs)}")
        return optimizer

    def _changes(self, model: PackModel, attached: Attached, pack: Pack) -> Tensor:
        """Relative change of each layer's attention output for the bare backbone's own inputs."""
        calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Tensor]] = []

        def keep(module: Any, args: Any, kwargs: Any, output: Any) -> None:
            calls.append((module, args, kwargs, output[0]))

        hooks = [
            layer.self_attn.register_forward_hook(keep, with_kwargs=True)
            for layer in self._model.model.layers
        ]
        with torch.no_grad():
            with attached.disabled():
                model.states(pack, self._embedded(pack))
            for hook in hooks:
                hook.remove()
            moved = []
            for module, args, kwargs, before in calls:
                after = module(*args, **kwargs)[0]
                moved.append((after - before).float().norm() / before.float().norm().clamp(1e-6))
        return torch.stack(moved).cpu()
