"""Task heads: stored, rebuilt, refused, and the same for one question as for many."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from agentkit.adapters.heads import ChoiceHead, SpanLabelHead, build_head
from agentkit.errors import AdapterError
from agentkit.testing import tiny_choice_head, tiny_label_head


def test_a_stored_head_answers_as_it_did(tmp_path: Path) -> None:
    head = tiny_choice_head(24, 3).eval()
    save_file(head.state_dict(), tmp_path / "head.safetensors")
    again = build_head("choice", load_file(tmp_path / "head.safetensors"), where="x")
    assert isinstance(again, ChoiceHead)
    question, spans = torch.randn(2, 24), torch.randn(5, 24)
    for ours, theirs in zip(again(question, spans), head(question, spans), strict=True):
        assert torch.equal(ours, theirs)


def test_a_label_head_gives_a_logit_per_unit_and_label() -> None:
    head = tiny_label_head(24, 3, 2)
    spans, tokens = head(torch.randn(5, 24, dtype=torch.bfloat16), torch.randn(7, 24))
    assert spans.shape == (5, 3)
    assert tokens.shape == (7, 2)
    assert spans.dtype == torch.float32


def test_questions_answer_alike_with_shared_and_with_own_spans() -> None:
    head = tiny_choice_head(24, 3)
    question, spans = torch.randn(4, 24), torch.randn(6, 24)
    shared = head(question, spans)
    own = head(question, spans.expand(4, -1, -1))
    for a, b in zip(shared, own, strict=True):
        torch.testing.assert_close(a, b)


def test_masked_spans_play_no_part() -> None:
    head = tiny_choice_head(24, 3)
    question, spans = torch.randn(1, 24), torch.randn(6, 24)
    mask = torch.tensor([[True, True, True, False, False, False]])
    choice, _ = head(question, spans, mask)
    torch.testing.assert_close(choice, head(question, spans[:3])[0])


def test_a_document_without_spans_still_gets_a_choice() -> None:
    choice, evidence = tiny_choice_head(24, 3)(torch.randn(2, 24), torch.zeros(0, 24))
    assert choice.shape == (2, 3)
    assert evidence.shape == (2, 0)
    assert choice.isfinite().all()


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("pooler", {}, "unknown kind of task head"),
        ("choice", {"query.weight": None}, "do not make"),
        ("choice", {"extra": torch.zeros(1)}, "do not make"),
        ("choice", {"gate.weight": torch.zeros(3, 3)}, "do not make"),
        ("choice", {"query.weight": torch.zeros(3)}, "do not make"),
        ("span-labels", {}, "do not make"),
    ],
)
def test_tensors_that_make_no_head_are_refused(kind: str, change: dict, message: str) -> None:
    tensors = {**tiny_choice_head(24, 3).state_dict(), **change}
    tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    with pytest.raises(AdapterError, match=message):
        build_head(kind, tensors, where="head.safetensors")


def test_rare_labels_start_from_a_low_prior() -> None:
    spans, _ = SpanLabelHead(24, 3, 2)(torch.zeros(1, 24), torch.zeros(1, 24))
    assert spans.sigmoid().max() < 0.05
