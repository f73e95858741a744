"""A linear probe fitted to questions' states, and how sure of itself it is."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from torch.nn import functional

from agentkit.adapters.heads import LinearProbe, build_head, top_odds
from agentkit.errors import AdapterError, InputError, SkillError
from agentkit.evaluation.classes import calibration_error
from agentkit.training.linear_probe import _trust, fit_probe, token_words
from agentkit.training.model import probed_features
from agentkit.training.packs import Pack
from agentkit.training.rows import Row

HIDDEN = 12
CHOICES = 4
WORDS = [f"word{number}" for number in range(8)]


class Kept:
    """Lower states that were computed before, by pack."""

    def __init__(self) -> None:
        self._by_pack: dict[int, torch.Tensor] = {}

    def get(self, pack: Pack) -> torch.Tensor:
        return self._by_pack[id(pack)]

    def packs(self, count: int, *, seed: int, noise: float = 3.0) -> list[Pack]:
        """Packs of five questions of three tokens each; the mean of a question tells its choice.

        Their tokens' ids tell nothing.
        """
        random = torch.Generator().manual_seed(seed)
        middles = torch.randn(CHOICES, HIDDEN, generator=torch.Generator().manual_seed(0))
        packs = []
        for _ in range(count):
            gold = torch.randint(CHOICES, (5,), generator=random).tolist()
            branch = [0, 0] + [number for number in range(1, 6) for _ in range(4)]
            pack = Pack(ids=[7] * 22, branch=branch, positions=list(range(22)))
            pack.answer_at = [4 + 4 * number for number in range(5)]  # one token is the answer's
            pack.choice = gold
            states = noise * torch.randn(22, HIDDEN, generator=random)
            for number, choice in enumerate(gold):
                states[2 + 4 * number : 5 + 4 * number] += middles[choice] * 5 + 3
            self._by_pack[id(pack)] = states
            packs.append(pack)
        return packs

    def copy(self, pack: Pack) -> Pack:
        copied = replace(pack)
        self._by_pack[id(copied)] = self.get(pack)
        return copied

    def means(self, packs: list[Pack]) -> tuple[torch.Tensor, torch.Tensor]:
        asked = [self.get(p)[end - 2 : end + 1].mean(dim=0) for p in packs for end in p.answer_at]
        return torch.stack(asked), torch.tensor([choice for p in packs for choice in p.choice])


def of_one(packs: list[Pack]) -> list[Row]:
    """The packs' rows, all of one group: nothing can be left out."""
    return rows_of(packs, ["one"] * len(packs))


def by_pack(packs: list[Pack]) -> list[Row]:
    return rows_of(packs, [str(number) for number in range(len(packs))])


def rows_of(packs: list[Pack], groups: list[str]) -> list[Row]:
    """A row for each question, of the group of its pack."""
    rows: list[Row] = []
    for pack, group in zip(packs, groups, strict=True):
        pack.rows = list(range(len(rows), len(rows) + len(pack.choice)))
        rows += [Row({}, None, group) for _ in pack.choice]
    return rows


def test_it_is_the_logistic_regression_of_its_features() -> None:
    kept = Kept()
    packs = kept.packs(30, seed=1)
    probe = LinearProbe(HIDDEN, CHOICES, 3)
    states: Any = kept
    fit_probe(probe, packs, states, WORDS, of_one(packs))
    features, gold = kept.means(packs)
    directions = functional.normalize((features - features.mean(0)) / features.std(0), dim=1)
    rows = len(gold)
    # scikit-learn sums the losses and halves the penalty.
    other = LogisticRegression(C=1 / (2 * 1e-5 * rows), max_iter=2000).fit(directions, gold)
    ours = probe(features).softmax(-1).numpy()
    assert abs(ours - other.predict_proba(directions.numpy())).max() < 0.02
    assert probe.reads == 3


def test_groups_left_out_in_turn_set_how_sure_it_is() -> None:
    kept = Kept()
    packs, unseen = (kept.packs(n, seed=s, noise=14.0) for n, s in ((8, 1), (80, 3)))
    bold, careful = LinearProbe(HIDDEN, CHOICES), LinearProbe(HIDDEN, CHOICES)
    states: Any = kept
    fit_probe(bold, packs, states, WORDS, of_one(packs))
    fit_probe(careful, packs, states, WORDS, by_pack(packs))
    features, gold = kept.means(unseen)
    losses = [float(functional.cross_entropy(one(features), gold)) for one in (bold, careful)]
    assert losses[1] < losses[0]


def test_a_group_is_left_out_as_a_whole() -> None:
    """Of documents that say everything again and again, one that is left out says nothing new."""
    kept = Kept()
    packs = kept.packs(4, seed=1, noise=14.0)
    again = [kept.copy(pack) for pack in packs for _ in range(6)]
    whole, split = LinearProbe(HIDDEN, CHOICES), LinearProbe(HIDDEN, CHOICES)
    states: Any = kept
    fit_probe(whole, again, states, WORDS, rows_of(again, [str(n // 6) for n in range(24)]))
    fit_probe(split, again, states, WORDS, by_pack(again))
    features, gold = kept.means(kept.packs(80, seed=3, noise=14.0))
    losses = [float(functional.cross_entropy(one(features), gold)) for one in (whole, split)]
    assert losses[0] < losses[1]


@pytest.mark.parametrize(("slope", "shift"), [(0.6, 0.3), (1.4, -0.5), (1.0, -9.0), (1.0, 0.0)])
def test_only_how_sure_the_first_choice_is_changes(slope: float, shift: float) -> None:
    probe = LinearProbe(HIDDEN, CHOICES)
    probe.slope.fill_(slope)
    probe.shift.fill_(shift)
    logits = 3 * torch.randn(500, CHOICES, generator=torch.Generator().manual_seed(4)).double()
    before, after = logits.softmax(-1), probe.calibrated(logits).softmax(-1)
    assert torch.equal(before.argmax(1), after.argmax(1))
    rest = torch.ones_like(before).scatter(1, before.argmax(1, keepdim=True), 0.0)
    for one, other in zip((before * rest), (after * rest), strict=True):
        torch.testing.assert_close(one / one.sum(), other / other.sum())
    sure = before.max(1).values
    wanted = torch.sigmoid(slope * (sure / (1 - sure)).log() + shift)
    second = after.topk(2, dim=1).values[:, 1]
    free = after.max(1).values > second * 1.05
    torch.testing.assert_close(after.max(1).values[free], wanted[free])
    assert bool((after.max(1).values >= wanted - 1e-5).all())
    assert shift < -1 or bool(free.float().mean() > 0.5)


def test_a_probe_is_as_often_right_as_it_is_sure() -> None:
    """Though a sixth of the labels say what is not so."""
    kept = Kept()
    packs, unseen = kept.packs(120, seed=1, noise=2.0), kept.packs(120, seed=3, noise=2.0)
    random = torch.Generator().manual_seed(5)
    for pack in [*packs, *unseen]:
        wrong = torch.rand(5, generator=random) < 1 / 6
        pack.choice = [(c + int(w)) % CHOICES for c, w in zip(pack.choice, wrong, strict=True)]
    probe = LinearProbe(HIDDEN, CHOICES)
    states: Any = kept
    fit_probe(probe, packs, states, WORDS, by_pack(packs))
    features, gold = kept.means(unseen)
    said = probe(features).softmax(-1)
    right = (said.argmax(1) == gold).float()
    assert float(right.mean()) > 0.75
    assert abs(float(said.max(1).values.mean() - right.mean())) < 0.05


def test_a_first_choice_that_is_too_sure_when_it_is_sure_is_mended() -> None:
    """Too sure where it is sure and not sure enough elsewhere, as no temperature can mend."""
    random = torch.Generator().manual_seed(6)
    logits = 2 * torch.randn(4000, 50, generator=random)
    odds = top_odds(logits)[:, 0]
    right = torch.rand(4000, generator=random) < torch.sigmoid(0.5 * odds + 0.2)
    first = logits.argmax(1)
    gold = torch.where(right, first, (first + 1) % 50)
    probe = LinearProbe(HIDDEN, 50)

    def error(said: torch.Tensor) -> float:
        sure = said[2000:].softmax(-1).max(1).values.double().numpy()
        found = calibration_error(sure, right[2000:].double().numpy(), np.ones(2000))
        assert found is not None
        return found

    best = min(error(logits / heat) for heat in torch.logspace(-1, 1, 60))
    _trust(probe, logits[:2000], gold[:2000])
    assert error(probe.calibrated(logits)) < 0.6 * best


def test_what_was_always_right_is_not_certain() -> None:
    kept = Kept()
    packs = kept.packs(20, seed=1, noise=0.1)
    probe = LinearProbe(HIDDEN, CHOICES)
    states: Any = kept
    fit_probe(probe, packs, states, WORDS, by_pack(packs))
    features, gold = kept.means(packs)
    said = probe(features).softmax(-1)
    assert torch.equal(said.argmax(1), gold)
    assert 0.98 < float(said.max(1).values.mean()) < 0.9999


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"layers": "all"}, "starts at layer 0.*upper 1/3"),
        ({"method": "prefix", "layers": "all"}, "a prefix acts on every layer"),
        ({"cache_lower": False}, "cache_lower: true"),
        ({"search": {"method": ["lora", "head"]}}, "take head out of search.method"),
        ({"search": {"layers": ["2-3", "all"]}}, "starts at layer 0"),
    ],
)
def test_it_needs_states_that_no_adapter_changes(
    make_toy: Callable[..., Any], tmp_path: Path, changes: dict[str, Any], what: str
) -> None:
    toy = make_toy("probed", tmp_path, **changes)
    with pytest.raises(SkillError, match=what):
        toy.train()


@pytest.mark.parametrize("kind", ["probed", "chosen"])
def test_a_head_needs_rows_that_leave_the_choice_open(
    make_toy: Callable[..., Any], tmp_path: Path, kind: str
) -> None:
    toy = make_toy(kind, tmp_path)
    manifest = json.loads((toy.folder / "skill.yaml").read_text())
    choices = manifest["output"]["properties"]["colour"]["enum"]
    manifest["answer"]["choice_given"] = choices[0]
    (toy.folder / "skill.yaml").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="gives the choice") as caught:
        toy.train()
    assert str(toy.folder / "train.yaml") in str(caught.value)


def test_rank_is_searched_for_beside_a_probe(make_toy: Callable[..., Any], tmp_path: Path) -> None:
    search = {"minutes": 0.05, "trials": 2, "rank": [2, 4]}
    toy = make_toy("probed", tmp_path / "searched", steps=4, search=search)
    assert toy.train()[0].metrics["search"]["trials"]


def test_layers_are_measured_beside_a_probe_and_those_below_must_be_enough(
    make_toy: Callable[..., Any], tmp_path: Path
) -> None:
    upper = make_toy("probed", tmp_path / "a", steps=4, layers="auto", importance="attention")
    assert upper.train()[0].metrics["layers"]["chosen"] == [2, 3]
    whole = make_toy("probed", tmp_path / "b", steps=4, layers="auto", importance="gradient")
    with pytest.raises(SkillError, match="starts at layer 0"):
        whole.train()


def test_an_adapter_without_a_head_can_be_started_from(
    make_toy: Callable[..., Any], tmp_path: Path
) -> None:
    general = make_toy("generate", tmp_path / "general", steps=60)
    general.train()
    fresh = make_toy("probed", tmp_path / "fresh", steps=10)
    staged = make_toy("probed", tmp_path / "staged", steps=10, start_from=str(general.folder))
    losses = [toy.train()[0].metrics["loss"][0]["loss"] for toy in (staged, fresh)]
    assert losses[0] < losses[1]


def test_a_pack_without_questions_is_passed_over() -> None:
    kept = Kept()
    packs = kept.packs(10, seed=1)
    bare = Pack(ids=[7], branch=[0], positions=[0])
    probe, other = LinearProbe(HIDDEN, CHOICES), LinearProbe(HIDDEN, CHOICES)
    states: Any = kept
    fit_probe(probe, packs, states, WORDS, by_pack(packs))
    fit_probe(other, [bare, *packs], states, WORDS, by_pack(packs))
    assert torch.equal(probe.weight, other.weight)


def test_words_tell_what_states_do_not(tmp_path: Path) -> None:
    kept = Kept()
    packs, unseen = kept.packs(40, seed=1, noise=0.0), kept.packs(20, seed=2, noise=0.0)
    random = torch.Generator().manual_seed(3)
    for pack in [*packs, *unseen]:
        for number, end in enumerate(pack.answer_at):
            states = kept.get(pack)
            states[end - 2 : end + 1] = torch.randn(3, HIDDEN, generator=random)
            # Two ids of a word that differ in case; the question's first word says its choice.
            pack.ids[end - 2] = pack.choice[number] + 8 * int(
                torch.randint(2, (), generator=random)
            )
    probe = LinearProbe(HIDDEN, CHOICES, 3)
    states: Any = kept
    words = [f"word{number % 8}" for number in range(16)]
    fit_probe(probe, packs, states, words, by_pack(packs))
    said = [
        int(probe(probed_features(probe, pack, kept.get(pack))).argmax(1)[n])
        for pack in unseen
        for n in range(5)
    ]
    gold = [choice for pack in unseen for choice in pack.choice]
    assert sum(a == b for a, b in zip(said, gold, strict=True)) > 0.95 * len(gold)
    # Every question has word7, which tells none from another.
    assert len(probe.idf) == CHOICES

    save_file(probe.state_dict(), tmp_path / "head.safetensors")
    read = load_file(tmp_path / "head.safetensors")
    again = build_head("probe", {name: one.float() for name, one in read.items()}, where="head")
    features = probed_features(probe, unseen[0], kept.get(unseen[0]))
    assert torch.equal(again(features), probe(features))
    with pytest.raises(AdapterError, match="terms that idf does not have"):
        build_head("probe", read | {"term_of": read["term_of"] + 1}, where="head")
    with pytest.raises(AdapterError, match="idf"):
        build_head("probe", {k: v for k, v in read.items() if k != "idf"}, where="head")


def test_words_are_told_apart_by_neither_case_nor_spaces(tiny_tokenizer: Any) -> None:
    words = token_words(tiny_tokenizer)
    assert len(words) == len(tiny_tokenizer)
    ids = [
        tiny_tokenizer(text, add_special_tokens=False)["input_ids"][0] for text in ("The", " the")
    ]
    assert {words[one] for one in ids} == {"the"}
