"""A linear probe fitted to questions' states, and how sure of itself it is."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from torch.nn import functional

from agentkit.adapters.heads import LinearProbe, build_head
from agentkit.errors import AdapterError, SkillError
from agentkit.training.linear_probe import fit_probe, token_words
from agentkit.training.model import probed_features
from agentkit.training.packs import Pack
from agentkit.training.train import train_skill

HIDDEN = 12
CHOICES = 4
WORDS = [f"word{number}" for number in range(8)]


def train(toy: Any) -> dict[str, Any]:
    return train_skill(
        toy.folder, settings=toy.settings, data_dir=toy.folder, console=Console(quiet=True)
    ).metrics


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

    def means(self, packs: list[Pack]) -> tuple[torch.Tensor, torch.Tensor]:
        asked = [self.get(p)[end - 2 : end + 1].mean(dim=0) for p in packs for end in p.answer_at]
        return torch.stack(asked), torch.tensor([choice for p in packs for choice in p.choice])


def test_it_is_the_logistic_regression_of_its_features() -> None:
    kept = Kept()
    packs = kept.packs(30, seed=1)
    probe = LinearProbe(HIDDEN, CHOICES, 3)
    states: Any = kept
    fit_probe(probe, packs, [], states, WORDS)
    features, gold = kept.means(packs)
    directions = functional.normalize((features - features.mean(0)) / features.std(0), dim=1)
    rows = len(gold)
    # scikit-learn sums the losses and halves the penalty.
    other = LogisticRegression(C=1 / (2 * 1e-5 * rows), max_iter=2000).fit(directions, gold)
    ours = probe(features).softmax(-1).numpy()
    assert abs(ours - other.predict_proba(directions.numpy())).max() < 0.02
    assert probe.reads == 3


def test_tuning_packs_set_how_sure_it_is() -> None:
    kept = Kept()
    packs, tuning, unseen = (
        kept.packs(n, seed=s, noise=14.0) for n, s in ((8, 1), (40, 2), (80, 3))
    )
    bold, careful = LinearProbe(HIDDEN, CHOICES), LinearProbe(HIDDEN, CHOICES)
    states: Any = kept
    fit_probe(bold, packs, [], states, WORDS)
    fit_probe(careful, packs, tuning, states, WORDS)
    features, gold = kept.means(unseen)
    losses = [float(functional.cross_entropy(one(features), gold)) for one in (bold, careful)]
    assert losses[1] < losses[0]


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
        train(toy)


def test_rank_is_searched_for_beside_a_probe(make_toy: Callable[..., Any], tmp_path: Path) -> None:
    search = {"minutes": 0.05, "trials": 2, "rank": [2, 4]}
    toy = make_toy("probed", tmp_path / "searched", steps=4, search=search)
    assert train(toy)["search"]["trials"]


def test_layers_are_measured_beside_a_probe_and_those_below_must_be_enough(
    make_toy: Callable[..., Any], tmp_path: Path
) -> None:
    upper = make_toy("probed", tmp_path / "a", steps=4, layers="auto", importance="attention")
    assert train(upper)["layers"]["chosen"] == [2, 3]
    whole = make_toy("probed", tmp_path / "b", steps=4, layers="auto", importance="gradient")
    with pytest.raises(SkillError, match="starts at layer 0"):
        train(whole)


def test_an_adapter_without_a_head_can_be_started_from(
    make_toy: Callable[..., Any], tmp_path: Path
) -> None:
    general = make_toy("generate", tmp_path / "general", steps=60)
    train(general)
    losses = [
        train(make_toy("probed", tmp_path / name, steps=10, **changes))["loss"][0]["loss"]
        for name, changes in (("fresh", {}), ("staged", {"start_from": str(general.folder)}))
    ]
    assert losses[1] < losses[0]


def test_a_pack_without_questions_is_passed_over() -> None:
    kept = Kept()
    packs = kept.packs(10, seed=1)
    bare = Pack(ids=[7], branch=[0], positions=[0])
    probe, other = LinearProbe(HIDDEN, CHOICES), LinearProbe(HIDDEN, CHOICES)
    states: Any = kept
    fit_probe(probe, packs, packs, states, WORDS)
    fit_probe(other, [*packs, bare], [bare, *packs], states, WORDS)
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
    fit_probe(probe, packs, [], states, words)
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
