"""Task heads: stored, rebuilt, refused, and the same for one question as for many."""

import functools
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from agentkit.adapters.heads import (
    ChoiceHead,
    SpanLabelHead,
    build_head,
    question_features,
    span_features,
    token_features,
)
from agentkit.errors import AdapterError
from agentkit.testing import tiny_choice_head, tiny_label_head, tiny_probe


def test_a_stored_head_answers_as_it_did(tmp_path: Path) -> None:
    head = tiny_choice_head(24, 3).eval()
    save_file(head.state_dict(), tmp_path / "head.safetensors")
    again = build_head("choice", load_file(tmp_path / "head.safetensors"), where="x")
    assert isinstance(again, ChoiceHead)
    question, spans = torch.randn(2, 48), torch.randn(5, 48)
    for ours, theirs in zip(again(question, spans), head(question, spans), strict=True):
        assert torch.equal(ours, theirs)


def test_a_label_head_without_cuts_of_its_own_gives_labels_from_a_half_on() -> None:
    stored = tiny_label_head(24, 3, 2).state_dict()
    stored["span_cut"][1] = 0.2
    assert build_head("span-labels", stored, where="x").span_cut.tolist()[1] == pytest.approx(0.2)
    older = {name: tensor for name, tensor in stored.items() if not name.endswith("_cut")}
    again = build_head("span-labels", older, where="x")
    assert again.span_cut.tolist() == [0.5] * 3
    assert again.token_cut.tolist() == [0.5] * 2


def test_a_label_head_gives_a_logit_per_unit_and_label() -> None:
    head = tiny_label_head(24, 3, 2)
    spans, tokens = head(torch.randn(5, 48), torch.randn(7, 72))
    assert spans.shape == (5, 3)
    assert tokens.shape == (7, 2)
    assert tokens.dtype == torch.float32


def test_questions_answer_alike_together_and_alone() -> None:
    head = tiny_choice_head(24, 3)
    questions, spans = torch.randn(4, 48), torch.randn(6, 48)
    choices, evidence = head(questions, spans)
    for at in range(4):
        alone = head(questions[at : at + 1], spans)
        torch.testing.assert_close(alone[0][0], choices[at])
        torch.testing.assert_close(alone[1][0], evidence[at])


def test_a_span_is_read_at_its_end_and_over_its_own_words() -> None:
    hidden = torch.randn(9, 24)
    # Two spans: tokens 1-3 closed by 4, tokens 6-7 closed by 8; 0 and 5 are numbers.
    both = span_features(hidden, [4, 8], [1, 2, 3, 6, 7])
    second = span_features(hidden[5:], [3], [1, 2])
    assert both.shape == (2, 48)
    torch.testing.assert_close(both[1], second[0])


def test_a_span_without_words_has_finite_features() -> None:
    assert span_features(torch.randn(4, 24), [1, 3], [2]).isfinite().all()


def test_a_token_is_read_with_what_follows_it_and_its_spans_end() -> None:
    hidden = torch.randn(16, 24)
    words = [1, 2, 3, 6, 7, 8, 9, 10, 11, 12, 13, 14]
    features = token_features(hidden, words, [4, 15])
    assert features.shape == (12, 72)
    normal = functools.partial(torch.nn.functional.layer_norm, normalized_shape=(24,))
    torch.testing.assert_close(features[2, :24], normal(hidden[3]))
    torch.testing.assert_close(features[2, 24:48], normal(hidden[words[3:11]].mean(dim=0)))
    torch.testing.assert_close(features[2, 48:], normal(hidden[4]))
    torch.testing.assert_close(features[11, 48:], normal(hidden[15]))


def test_the_last_token_and_no_tokens_have_finite_features() -> None:
    assert token_features(torch.randn(4, 24), [1], [3]).isfinite().all()
    assert token_features(torch.randn(4, 24), [], [3]).shape == (0, 72)


def test_a_question_is_read_at_its_end_and_over_its_words() -> None:
    states = torch.randn(5, 24)
    features = question_features(states)
    assert features.shape == (48,)
    torch.testing.assert_close(features[:24], question_features(states[-1:])[:24])


def test_a_document_without_spans_still_gets_a_choice() -> None:
    choice, evidence = tiny_choice_head(24, 3)(torch.randn(2, 48), torch.zeros(0, 48))
    assert choice.shape == (2, 3)
    assert evidence.shape == (2, 0)
    assert choice.isfinite().all()


def test_without_spans_all_attention_is_on_nothing() -> None:
    assert torch.equal(ChoiceHead.attention(torch.zeros(2, 0)), torch.ones(2, 1))


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


@pytest.mark.parametrize(
    "change",
    [
        {"center": torch.zeros(())},
        {"term_of": torch.zeros(())},
        {"term_of": torch.zeros(0)},
        {"term_of": None},
        {"idf": None},
        {"term_of": torch.full((50,), 5.0)},
        {"term_of": torch.full((50,), float("nan"))},
        {"weight": torch.zeros(3, 8)},
    ],
    ids=str,
)
def test_tensors_that_make_no_probe_are_refused(change: dict) -> None:
    whole = tiny_probe(24, 3, 2, terms=4, vocabulary=50).state_dict()
    build_head("probe", dict(whole), where="head.safetensors")
    tensors = {n: t for n, t in (whole | change).items() if t is not None}
    with pytest.raises(AdapterError, match="do not make"):
        build_head("probe", tensors, where="head.safetensors")


def test_rare_labels_start_from_a_low_prior() -> None:
    spans, _ = SpanLabelHead(24, 3, 2)(torch.zeros(1, 48), torch.zeros(1, 72))
    assert spans.sigmoid().max() < 0.05
