"""A linear probe fitted to questions' states, and how sure of itself it is."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from sklearn.linear_model import LogisticRegression
from torch.nn import functional

from agentkit.adapters.heads import LinearProbe
from agentkit.errors import SkillError
from agentkit.training.linear_probe import fit_probe
from agentkit.training.packs import Pack
from agentkit.training.train import train_skill

HIDDEN = 12
CHOICES = 4


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
        """Packs of five questions of three tokens each; the mean of a question tells its choice."""
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
    fit_probe(probe, packs, [], states)
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
    fit_probe(bold, packs, [], states)
    fit_probe(careful, packs, tuning, states)
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
    fit_probe(probe, packs, packs, states)
    fit_probe(other, [*packs, bare], [bare, *packs], states)
    assert torch.equal(probe.weight, other.weight)
