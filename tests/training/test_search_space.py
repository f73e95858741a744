"""The space of a search: refused in the file, or before any trial, where it cannot be tried."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agentkit.errors import SkillError
from agentkit.training import probing, search
from agentkit.training.probing import Probe
from agentkit.training.spec import TrainSpec, load_train_spec

SMALLEST = "data: [{path: rows.jsonl}]\n"


def loaded(folder: Path, text: str) -> TrainSpec:
    path = folder / "train.yaml"
    path.write_text(SMALLEST + text, encoding="utf-8")
    return load_train_spec(path)


def trained(toy: Any) -> dict[str, Any]:
    metrics: dict[str, Any] = toy.train()[0].metrics
    return metrics


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("quantization: int8\nsearch: {method: [dora]}", "dora needs the weights' norms"),
        ("quantization: nf4\nsearch: {method: [lora, dora]}", "dora needs the weights' norms"),
        ("search: {learning_rate: [2e-3, 1e-4]}", "search.learning_rate: the least"),
        ("search: {learning_rate: [0, 1e-4]}", "search.learning_rate.0: Input should be greater"),
        ("search: {learning_rate: [1e-4, .inf]}", "search.learning_rate.1: Input should be a fini"),
        ("search: {rank: [0]}", "search.rank.0: Input should be greater than or equal to 1"),
        ("search: {rank: [4, 512]}", "search.rank.1: Input should be less than or equal to 256"),
        ("search: {reduction_factor: [0.5]}", "search.reduction_factor.0: Input should be greater"),
        ("search: {virtual_tokens: [0]}", "search.virtual_tokens.0: Input should be greater"),
        ("search: {layers: [all, auto]}", 'search.layers.1: "auto" is measured'),
        ("size: auto\nsearch: {}", "size: auto would overrule what search finds of rank"),
        ("size: auto\nsearch: {rank: [8]}", "write `rank: []` in search"),
        (
            "size: auto\nmethod: bottleneck\nsearch: {reduction_factor: [4, 8]}",
            "would overrule what search finds of reduction_factor",
        ),
        ("size: auto\nsearch: {method: [head], rank: []}", "a task head alone has no size"),
        (
            "method: bottleneck\nsearch: {rank: [4]}",
            "search.rank: none of the tried methods has it",
        ),
        ("search: {method: [prefix, head], rank: [4, 8]}", "methods has it (prefix, head)"),
        ("search: {reduction_factor: [4, 8]}", "search.reduction_factor: none of the"),
        ("method: hybrid\nsearch: {virtual_tokens: [4, 8]}", "search.virtual_tokens: none of"),
    ],
)
def test_a_space_that_cannot_be_tried_is_refused_with_the_file(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(SkillError) as raised:
        loaded(tmp_path, text)
    assert message in str(raised.value)
    assert raised.value.exit_code == 2


@pytest.mark.parametrize(
    "text",
    [
        "search: {learning_rate: [1e-3, 1e-3]}",
        "size: auto\nsearch: {rank: []}",
        "size: auto\nmethod: bottleneck\nsearch: {}",
        "size: auto\nmethod: hybrid\nsearch: {rank: [], reduction_factor: [4, 8]}",
        "search: {method: [lora, prefix], rank: [4, 8], virtual_tokens: [4, 8]}",
        "method: prefix\nsearch: {minutes: 5}",
    ],
)
def test_a_space_that_can_be_tried_is_taken(tmp_path: Path, text: str) -> None:
    assert loaded(tmp_path, text).search is not None


@pytest.mark.parametrize(
    ("space", "where"),
    [
        ({"layers": ["2-3", "40-50"]}, "search.layers"),
        ({"method": ["lora", "head"]}, "search.meth"),
    ],
)
def test_what_the_skill_or_the_backbone_lacks_is_said_before_any_trial(
    make_toy: Callable[..., Any], tmp_path: Path, space: dict[str, Any], where: str
) -> None:
    toy = make_toy("generate", tmp_path, layers="auto", search=space | {"trials": 1})
    with pytest.raises(SkillError) as raised:
        trained(toy)
    assert where in str(raised.value)
    assert "auto" not in str(raised.value)
    assert not list(toy.settings.home.rglob("measured.json"))  # nor are layers measured first
    assert not list(toy.settings.home.rglob("search.sqlite"))


@pytest.mark.parametrize(
    ("method", "name", "choices", "left_out"),
    [
        ("bottleneck", "reduction_factor", [4.0, 8.0], {"rank", "virtual_tokens"}),
        ("prefix", "virtual_tokens", [2, 4], {"rank", "reduction_factor"}),
    ],
)
def test_a_study_varies_what_its_method_has(
    make_toy: Callable[..., Any],
    tmp_path: Path,
    method: str,
    name: str,
    choices: list[float],
    left_out: set[str],
) -> None:
    pytest.importorskip("optuna")
    more = {"layers": "all", "search": {"trials": 2, name: choices}}
    toy = make_toy("generate", tmp_path, steps=4, method=method, **more)
    metrics = trained(toy)
    for trial in metrics["search"]["trials"]:
        assert trial["settings"][name] in choices
        assert not left_out & set(trial["settings"])
    assert metrics["training"][name] == metrics["search"]["best"][name]


def test_methods_of_a_study_are_each_tried_with_sizes_of_their_own(
    make_toy: Callable[..., Any], tmp_path: Path
) -> None:
    pytest.importorskip("optuna")
    sizes = {"rank": [2, 4], "reduction_factor": [4.0, 8.0]}
    space = {"trials": 6, "method": ["lora", "bottleneck", "hybrid"], **sizes}
    toy = make_toy("generate", tmp_path, steps=4, search=space)
    has = {"lora": {"rank"}, "bottleneck": {"reduction_factor"}, "hybrid": set(sizes)}
    trials = [trial["settings"] for trial in trained(toy)["search"]["trials"]]
    assert len({trial["method"] for trial in trials}) > 1
    assert all(set(trial) & set(sizes) == has[trial["method"]] for trial in trials)


def test_a_study_that_goes_on_draws_other_settings_than_it_began_with(
    make_toy: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("optuna")
    toy = make_toy("generate", tmp_path, steps=4, search={"trials": 5, "rank": [4]})
    measure, tried = Probe.short_loss, []

    def interrupted_in_the_third(self: Probe, *given: Any, **more: Any) -> float:
        tried.append(len(tried))
        if len(tried) == 3:
            raise KeyboardInterrupt
        return measure(self, *given, **more)

    monkeypatch.setattr(Probe, "short_loss", interrupted_in_the_third)
    with pytest.raises(KeyboardInterrupt):
        trained(toy)
    trials = trained(toy)["search"]["trials"]
    ended = [trial for trial in trials if trial["state"] != "fail"]
    assert (len(ended), len(trials), len(tried)) == (5, 6, 6)
    assert len({trial["settings"]["learning_rate"] for trial in trials}) == 6


def test_a_trial_that_was_killed_is_none_of_those_asked_for(
    make_toy: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    optuna = pytest.importorskip("optuna")
    toy = make_toy("generate", tmp_path, steps=4, search={"trials": 1, "minutes": 1e-6, "rank": []})
    with monkeypatch.context() as patched:
        patched.setattr(Probe, "short_loss", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            trained(toy)
    (store,) = tmp_path.rglob("search.sqlite")
    (name,) = optuna.get_all_study_names(f"sqlite:///{store}")
    optuna.load_study(storage=f"sqlite:///{store}", study_name=name).ask()  # as kill -9 leaves it
    assert [t["state"] for t in trained(toy)["search"]["trials"]] == ["fail", "complete"]


def _interrupted(*given: Any, **more: Any) -> float:
    raise KeyboardInterrupt


def test_a_trial_worse_than_most_or_too_late_is_given_up_half_way(
    make_toy: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("optuna")
    space = {"trials": 12, "rank": [], "learning_rate": [1e-6, 3e-1]}
    toy = make_toy("generate", tmp_path / "worse", steps=4, pack_tokens=128, search=space)
    record = trained(toy)["search"]
    assert {trial["state"] for trial in record["trials"]} == {"complete", "pruned"}
    assert record["loss"] == pytest.approx(
        min(t["loss"] for t in record["trials"] if t["state"] == "complete"), abs=1e-4
    )

    clock = iter(range(10**6))
    ticking = SimpleNamespace(monotonic=lambda: 45.0 * next(clock))
    monkeypatch.setattr(search, "time", ticking)
    late = make_toy("likelihood", tmp_path / "late", steps=4, search=space | {"minutes": 1.0})
    states = [trial["state"] for trial in trained(late)["search"]["trials"]]
    assert states[0] == "complete"
    assert states[1:]
    assert set(states[1:]) == {"pruned"}


def test_a_head_alone_is_tried_at_the_rate_that_it_is_trained_at(
    make_toy: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("optuna")
    space = {"trials": 3, "method": ["head", "prefix"], "rank": []}
    toy = make_toy("choice", tmp_path, steps=4, head_learning_rate=0.02, search=space)
    rates: list[list[float]] = []
    make = probing.optimizer_of

    def noted(*given: Any) -> Any:
        optimizer = make(*given)
        rates.append([group["lr"] for group in optimizer.param_groups])
        return optimizer

    monkeypatch.setattr(probing, "optimizer_of", noted)
    trials = trained(toy)["search"]["trials"]
    assert {trial["settings"]["method"] for trial in trials} == {"head", "prefix"}
    for trial, (*adapter, head) in zip(trials, rates, strict=True):
        of_head = trial["settings"]["method"] == "head"
        assert head == 0.02
        assert bool(adapter) != of_head
        assert ("learning_rate" in trial["settings"]) != of_head
