"""`search:` and `size: auto` in `train.yaml`: settings found by short trainings on a sample.

A search is an Optuna study (https://arxiv.org/abs/1907.10902): a tree-structured Parzen estimator
proposes settings, a trial that is worse half way than the median of those before is given up. The
study is kept in a SQLite file, so a search that was killed goes on where it was.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from agentkit.adapters.heads import Head
from agentkit.errors import MissingExtraError, SkillError
from agentkit.pictures import picture
from agentkit.training.layer_selection import given_layers
from agentkit.training.packs import Pack
from agentkit.training.probing import Probe, Step, parted, sample_packs
from agentkit.training.spec import RATES, SearchSpec, TrainSpec

RANKS = (4, 8, 16, 32, 64)
FACTORS = (64.0, 32.0, 16.0, 8.0, 4.0)
"""Reduction factors of a bottleneck, from small to large."""
_LEAST_GAIN = 0.01
"""Share of the loss that a size twice as large must save."""


def size_losses(
    model: Any,
    spec: TrainSpec,
    packs: Sequence[Pack],
    layers: Sequence[int],
    head: Head | None,
    *,
    said: Step,
) -> dict[str, float]:
    """The loss with each size, from small to large, until one gains less than a hundredth.

    The size is a rank, or a bottleneck's reduction factor, by its name.
    """
    learnt, held = parted(sample_packs(packs, spec.probe_packs))
    losses: dict[str, float] = {}
    for name, sized in _sizes(spec).items():
        loss = Probe(model, sized, head, said).short_loss(layers, learnt, held)
        losses[name] = round(loss, 5)
        if _last_that_gained(losses) != name:
            break
    return losses


def best_size(spec: TrainSpec, losses: Mapping[str, float]) -> TrainSpec:
    """`spec` with the least size that one twice as large does not better by a hundredth."""
    return _sizes(spec)[_last_that_gained(losses)]


def _sizes(spec: TrainSpec) -> dict[str, TrainSpec]:
    if spec.method == "bottleneck":
        return {f"{f:g}": spec.model_copy(update={"reduction_factor": f}) for f in FACTORS}
    return {str(rank): spec.with_rank(rank) for rank in RANKS}


def _last_that_gained(losses: Mapping[str, float]) -> str:
    best, *larger = losses
    for name in larger:
        if (losses[best] - losses[name]) / max(abs(losses[best]), 1e-9) < _LEAST_GAIN:
            break
        best = name
    return best


def search(
    model: Any,
    spec: TrainSpec,
    packs: Sequence[Pack],
    head: Head | None,
    *,
    store: Path,
    key: str,
    said: Step,
) -> tuple[TrainSpec, dict[str, Any]]:
    """The settings of the best trial, put into `spec`, and a record of the study.

    `store` is the SQLite file and `key` the study's name in it. Raises `SkillError` for a space
    with layers or a head that are not there, and where the extra `search` is not installed.
    """
    space = spec.search or SearchSpec()
    count = int(model.config.num_hidden_layers)
    check_space(space, count, head=head is not None)
    optuna = _optuna()
    learnt, held = parted(sample_packs(packs, spec.probe_packs))

    def objective(trial: Any) -> float:
        tried = _tried(spec, space, trial)
        layers = given_layers(tried.layers, count)

        def half_way(loss: float) -> None:
            trial.report(loss, 1)
            late = time.monotonic() > deadline and _ended(study, "COMPLETE")
            if late or trial.should_prune():
                raise optuna.TrialPruned

        probe = Probe(model, tried, head, said)
        return probe.short_loss(layers, learnt, held, half_way=half_way)

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=f"sqlite:///{store}",
        study_name=key,
        load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(n_startup_trials=3),
    )
    # A study that goes on would draw the settings of its first trials again by the same seed.
    study.sampler = optuna.samplers.TPESampler(seed=spec.seed + len(study.trials))
    # A trial that was killed, or failed, is none of those that were asked for.
    whole = _ended(study, "COMPLETE")
    left = space.trials - len(whole) - len(_ended(study, "PRUNED"))
    # The minutes are those of all starts together.
    spent = sum(trial.duration.total_seconds() for trial in study.trials if trial.duration)
    seconds = max(1.0, 60 * space.minutes - spent)
    deadline = time.monotonic() + seconds
    if left > 0 and (seconds > 1.0 or not whole):
        # One whose settings take too much of a GPU's memory fails alone.
        out_of_memory = (torch.OutOfMemoryError,)
        study.optimize(objective, n_trials=left, timeout=seconds, catch=out_of_memory)
    if not _ended(study, "COMPLETE"):
        raise SkillError(
            "no trial of the search came to its end",
            where="train.yaml",
            hint="give search more minutes, or fewer probe_packs",
        )
    record = {
        "best": study.best_params,
        "loss": round(study.best_value, 5),
        "trials": [
            {"settings": t.params, "loss": t.value, "state": t.state.name.lower()}
            for t in study.trials
            if t.state.is_finished()
        ],
    }
    return _tried(spec, space, optuna.trial.FixedTrial(study.best_params)), record


def _ended(study: Any, state: str) -> list[Any]:
    return [trial for trial in study.trials if trial.state.name == state]


def check_space(space: SearchSpec, count: int, *, head: bool) -> None:
    """Raises `SkillError` for what only some trial would stumble over, before there is any.

    `count` is the backbone's number of layers, `head` whether a head answers.
    """
    if not head and "head" in space.method:
        raise SkillError(
            "there is no task head to train: the skill answers in words",
            where="train.yaml, search.method",
            hint="take head out of it",
        )
    for layers in space.layers:
        try:
            given_layers(layers, count)
        except SkillError as error:
            raise SkillError(
                error.what,
                where="train.yaml, search.layers",
                hint='write "all", "upper 1/3", a range such as "20-29", or a list of them',
            ) from error


def draw_search(path: Path, record: dict[str, Any], title: str) -> None:
    """Every trial's loss, and the best so far; nothing without matplotlib."""
    trials = [(n, t["loss"], t["state"]) for n, t in enumerate(record["trials"], start=1)]
    whole = [(n, loss) for n, loss, state in trials if state == "complete"]
    cut = [(n, loss) for n, loss, state in trials if state != "complete" and loss is not None]
    best = [min(loss for m, loss in whole if m <= n) for n, _ in whole]
    # A picture is an extra: the trials are in metrics.json.
    with suppress(MissingExtraError), picture(path, (6, 3)) as axes:
        if cut:
            axes.scatter(*zip(*cut, strict=True), color="#c9d3dd", label="given up half way")
        axes.scatter(*zip(*whole, strict=True), color="#2f5d8a", label="to its end")
        axes.step([n for n, _ in whole], best, where="post", color="#b5582b", label="best so far")
        axes.set(xlabel="trial", ylabel="loss on the sample", title=title)
        axes.legend(frameon=False)


def _tried(spec: TrainSpec, space: SearchSpec, trial: Any) -> TrainSpec:
    changes: dict[str, Any] = {}
    for name in ("method", "layers"):
        if choices := getattr(space, name):
            changes[name] = trial.suggest_categorical(name, list(choices))
    tried = spec.model_copy(update=changes)
    if space.learning_rate is not None and tried.method != "head":  # which learns at its own
        least, most = space.learning_rate
        rate = trial.suggest_float("learning_rate", least, most, log=True)
        tried = tried.model_copy(update={"learning_rate": rate})
    if tried.method == "prefix":  # acts on every layer, and learns at another rate
        faster = RATES["prefix"] / RATES["lora"]
        rate = tried.learning_rate and tried.learning_rate * faster
        tried = tried.model_copy(update={"layers": "all", "learning_rate": rate})
    for name, choices in space.sizes(tried.method).items():
        size = trial.suggest_categorical(name, list(choices))
        tried = tried.with_rank(size) if name == "rank" else tried.model_copy(update={name: size})
    return tried


def check_optuna() -> None:
    """Raises `SkillError` where the extra `search` is not installed."""
    _optuna()


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise SkillError(
            "search needs Optuna, which is not installed",
            where="train.yaml",
            hint="pip install 'agentkit-skills[search]'",
        ) from error
    return optuna
