"""What a trained pack model gets right on rows that it was not trained on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, f1_score, precision_recall_curve
from torch import Tensor
from torch.nn import functional

from agentkit.adapters.heads import ChoiceHead, LinearProbe, SpanLabelHead
from agentkit.skill.manifest import Manifest, MarksAnswer
from agentkit.training.lower import LowerStates
from agentkit.training.model import (
    PackModel,
    choice_features,
    label_features,
    pairs,
    probed_features,
)
from agentkit.training.packs import Pack

_Array = NDArray[np.float32]
_ENOUGH = 5
"""Examples from which on a label has a cut of its own, or a head is calibrated at all."""


@torch.inference_mode()
def measure_packs(
    model: PackModel, packs: Sequence[Pack], states: LowerStates, manifest: Manifest
) -> dict[str, Any]:
    """Figures by name: accuracy and macro-F1, average precision, or loss, as the answer's kind is.

    Empty when there are no packs.
    """
    if not packs:
        return {}
    model.eval()
    if isinstance(model.head, SpanLabelHead) and isinstance(manifest.answer, MarksAnswer):
        spans, span_gold, tokens, token_gold = _label_scores(model, model.head, packs, states)
        return _labels(spans, span_gold, tokens, token_gold, manifest.answer)
    figures: dict[str, Any] = {}
    if isinstance(model.head, ChoiceHead | LinearProbe):
        figures |= _choices(model, model.head, packs, states, manifest.head_choices)
    texts = [pack for pack in packs if pack.targets]
    if texts:
        losses = [
            float(model.text_loss(pack, model.states(pack, states.get(pack)))) for pack in texts
        ]
        figures["loss"] = round(
            float(np.average(losses, weights=[len(p.targets) for p in texts])), 4
        )
    return figures


def _choices(
    model: PackModel,
    head: ChoiceHead | LinearProbe,
    packs: Sequence[Pack],
    states: LowerStates,
    choices: Sequence[str],
) -> dict[str, Any]:
    said: list[int] = []
    gold: list[int] = []
    scores: list[_Array] = []
    held: list[_Array] = []
    for pack in packs:
        if not pack.answer_at:
            continue
        lower = states.get(pack)
        if isinstance(head, LinearProbe):
            logits = head(probed_features(head, pack, lower.to(head.bias.device)))
            evidence = logits[:, :0]
        else:
            logits, evidence = head(*choice_features(pack, model.states(pack, lower)))
        said += logits.argmax(dim=1).tolist()
        gold += pack.choice
        scores.append(evidence.flatten().cpu().numpy())
        held.append(pairs(pack.evidence, *evidence.shape).flatten().numpy())
    if not gold:
        return {}
    right = np.array(said) == np.array(gold)
    figures: dict[str, Any] = {
        "questions": len(gold),
        "accuracy": round(float(right.mean()), 4),
        "macro_f1": round(float(f1_score(gold, said, average="macro", zero_division=0)), 4),
    }
    truth = np.concatenate(held)
    if truth.any():
        figures["evidence_average_precision"] = round(
            float(average_precision_score(truth, np.concatenate(scores))), 4
        )
    labels = range(len(choices))
    per_class = f1_score(gold, said, average=None, labels=labels, zero_division=0)
    figures["f1"] = {
        name: round(float(score), 4) for name, score in zip(choices, per_class, strict=True)
    }
    return figures


def _label_scores(
    model: PackModel, head: SpanLabelHead, packs: Sequence[Pack], states: LowerStates
) -> tuple[_Array, _Array, _Array, _Array]:
    rows: tuple[list[_Array], list[_Array], list[_Array], list[_Array]] = ([], [], [], [])
    for pack in packs:
        hidden = model.states(pack, states.get(pack))
        spans, tokens = head(*label_features(pack, hidden))
        rows[0].append(spans.cpu().numpy())
        rows[1].append(pairs(pack.span_labels, *spans.shape).numpy())
        rows[2].append(tokens.cpu().numpy())
        rows[3].append(pairs(pack.token_labels, *tokens.shape).numpy())
    spans_, gold_, tokens_, token_gold = (np.concatenate(part) for part in rows)
    return spans_, gold_, tokens_, token_gold


def _labels(
    spans: _Array, span_gold: _Array, tokens: _Array, token_gold: _Array, answer: MarksAnswer
) -> dict[str, Any]:
    by_label: dict[str, float] = {}
    for unit, scores, gold in (("sentence", spans, span_gold), ("token", tokens, token_gold)):
        names = [label.name for label in answer.labels if label.unit == unit]
        for at, name in enumerate(names):
            if gold[:, at].any():
                value = average_precision_score(gold[:, at], scores[:, at])
                by_label[name] = round(float(value), 4)
    figures: dict[str, Any] = {"mean_average_precision": 0.0, "average_precision": by_label}
    if by_label:
        figures["mean_average_precision"] = round(float(np.mean(list(by_label.values()))), 4)
    if span_gold.any():
        micro = average_precision_score(span_gold.ravel(), spans.ravel())
        figures["micro_average_precision"] = round(float(micro), 4)
    return figures


@torch.inference_mode()
def calibrate(model: PackModel, packs: Sequence[Pack], states: LowerStates) -> None:
    """Make a head's scores mean something, by the tuning rows; ranks stay as they are.

    A choice's probabilities are spread by a temperature (Guo et al., "On Calibration of Modern
    Neural Networks", ICML 2017), labels' by `platt`. Where a label is given from is its best F1;
    labels with too few examples share one cut, the best for all of them together, for their
    own would be noise. The bias of evidence moves so that a score of 0.5 is its best F1.
    """
    model.eval()
    if isinstance(model.head, SpanLabelHead) and packs:
        spans, span_gold, tokens, token_gold = _label_scores(model, model.head, packs, states)
        for layer, cuts, logits, gold in (
            (model.head.span, model.head.span_cut, spans, span_gold),
            (model.head.token, model.head.token_cut, tokens, token_gold),
        ):
            if logits.size and gold.sum() >= _ENOUGH:
                slope, shifts = platt(torch.from_numpy(logits), torch.from_numpy(gold))
                layer.weight.mul_(slope)
                layer.bias.mul_(slope).add_(shifts.to(layer.bias.device))
                scores = (torch.from_numpy(logits) * slope + shifts).sigmoid().numpy()
                common = _best_cut(scores.ravel(), gold.ravel())
                for at in range(scores.shape[1]):
                    enough = gold[:, at].sum() >= _ENOUGH
                    cuts[at] = _best_cut(scores[:, at], gold[:, at]) if enough else common
    if isinstance(model.head, ChoiceHead) and packs:
        pointed, held = [], []
        choices, gold_choices = [], []
        for pack in packs:
            if pack.answer_at:
                hidden = model.states(pack, states.get(pack))
                choice, evidence = model.head(*choice_features(pack, hidden))
                choices.append(choice.cpu())
                gold_choices += pack.choice
                pointed.append(evidence.flatten().cpu().numpy())
                held.append(pairs(pack.evidence, *evidence.shape).flatten().numpy())
        if choices:
            heat = temperature(torch.cat(choices), torch.tensor(gold_choices))
            model.head.choice.weight.div_(heat)
            model.head.choice.bias.div_(heat)
        if pointed and np.concatenate(held).any():
            cut = _best_cut(np.concatenate(pointed), np.concatenate(held))
            model.head.evidence_cut -= cut


def temperature(logits: Tensor, gold: Tensor) -> float:
    """What logits `(n, choices)` are to be divided by for the gold choices `(n,)` to be likeliest.

    Between a fifth and five: of rows that are all answered right there would be no end to it.
    """
    tried = torch.logspace(math.log10(0.2), math.log10(5.0), 200)
    losses = torch.stack([functional.cross_entropy(logits / heat, gold) for heat in tried])
    return float(tried[int(losses.argmin())])


@torch.inference_mode(False)
@torch.enable_grad()
def platt(logits: Tensor, gold: Tensor) -> tuple[float, Tensor]:
    """A slope for all labels and a shift for each, `(labels,)`, that make the gold likeliest.

    `logits` and `gold` are `(n, labels)`. Platt, "Probabilistic outputs for support vector
    machines", 1999. A label's shift is drawn to the common one, and the slope to 1, by Gaussian
    priors of unit width (of the slope's logarithm), so that a label with few examples, or none,
    takes the others' shift.
    """
    known = logits.to(torch.float64, copy=True)  # what was inferred has no gradients
    truth = gold.to(torch.float64, copy=True)
    bend = torch.zeros((), dtype=torch.float64, requires_grad=True)
    common = torch.zeros((), dtype=torch.float64, requires_grad=True)
    own = torch.zeros(logits.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer: Any = torch.optim.LBFGS(
        [bend, common, own], max_iter=100, line_search_fn="strong_wolfe", tolerance_change=1e-9
    )

    def unlikeliness() -> Tensor:
        optimizer.zero_grad()
        said = known * bend.exp() + common + own
        unlikely = functional.binary_cross_entropy_with_logits(said, truth, reduction="sum")
        total: Any = unlikely + (own.square().sum() + bend.square()) / 2
        total.backward()
        loss: Tensor = total
        return loss

    optimizer.step(unlikeliness)
    return float(bend.detach().exp()), (common + own).detach().float()


def _best_cut(scores: _Array, gold: _Array) -> float:
    precision, recall, cuts = precision_recall_curve(gold, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-9)
    return float(cuts[int(np.argmax(f1[:-1]))])
