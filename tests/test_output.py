"""Completions to outputs: quotes are the document's own words, and schemas hold."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentkit.errors import InputError, OutputError
from agentkit.output import check_input, fits, generation_schema, to_output
from agentkit.prompt import (
    build_prompt,
    encode_prompt,
    frame_of,
    number_spans,
    renumber,
    skill_prompt,
)
from agentkit.retrieval.spans import split_spans
from agentkit.skill.manifest import Manifest
from agentkit.testing import tiny_tokenizer
from agentkit.types import Completion, Document, EncodedPrompt, PromptSpan, Reading, Usage

TOKENIZER = tiny_tokenizer()
FRAME = frame_of(TOKENIZER)
TEXT = "Acme Ltd. sells. Bolt Inc. buys in May. Nothing else is said. It ends here."

EVIDENCE = {
    "type": "array",
    "items": {"type": "object", "required": ["quote", "start", "end", "score"]},
}


def manifest(**values: Any) -> Manifest:
    return Manifest.model_validate({"name": "reader", "description": "Reads."} | values)


def encode(text: str = TEXT, first: int = 0, last: int | None = None) -> EncodedPrompt:
    document = Document("d" * 64, "x.txt", "text/plain", text, spans=split_spans(text))
    spans: tuple[PromptSpan, ...] = renumber(number_spans(document)[first:last])
    return encode_prompt(
        TOKENIZER, build_prompt(FRAME, instructions="", question="Why?", spans=spans)
    )


def read(**parts: Any) -> Completion:
    arrays = {name: np.asarray(part, dtype=np.float32) for name, part in parts.items()}
    return Completion(usage=Usage(), reading=Reading(**arrays), finish="head")


def written(value: Any) -> Completion:
    text = value if isinstance(value, str) else json.dumps(value)
    return Completion(usage=Usage(), text=text)


# ---------------------------------------------------------------- input


TAKES_RULE = manifest(
    input={"type": "object", "properties": {"rule": {"type": "string"}}, "required": ["rule"]}
)


def test_an_input_that_does_not_fit_says_where() -> None:
    check_input(TAKES_RULE, {"rule": "R"})
    with pytest.raises(InputError, match=r"skill reader: the input does not fit: rule: 3 is not"):
        check_input(TAKES_RULE, {"rule": 3})
    with pytest.raises(InputError, match="'rule' is a required property"):
        check_input(TAKES_RULE, {})


def test_a_skill_that_takes_a_text_takes_anything() -> None:
    assert fits(manifest(), {"rule": "R", "n": 1})
    assert fits(TAKES_RULE, {"rule": "R"})
    assert not fits(TAKES_RULE, {"document": "D"})


# ---------------------------------------------------------------- written answers


QUOTING = manifest(
    output={
        "type": "object",
        "properties": {
            "why": {"x-quote": True},
            "more": {"type": "array", "items": {"x-quote": True}},
            "note": {"type": "string", "maxLength": 20},
        },
        "required": ["why"],
    }
)


def test_free_text_is_stripped_and_unconstrained() -> None:
    assert generation_schema(manifest(), encode().prompt) is None
    assert to_output(manifest(), [(encode(), written(" Fine.\n"))]) == "Fine."


def test_a_bounded_text_is_written_as_json() -> None:
    bounded = manifest(output={"type": "string", "maxLength": 10})
    assert generation_schema(bounded, encode().prompt) == {"type": "string", "maxLength": 10}
    assert to_output(bounded, [(encode(), written('"Fine."'))]) == "Fine."


def test_the_model_writes_span_numbers_where_the_output_quotes() -> None:
    schema = generation_schema(QUOTING, encode().prompt)
    number = {"type": "integer", "minimum": 1, "maximum": 4}
    assert schema is not None
    assert schema["properties"]["why"] == number
    assert schema["properties"]["more"]["items"] == number


def test_a_grounded_text_has_the_names_of_question_and_document() -> None:
    output = {"type": "string", "maxLength": 30, "x-grounded": True}
    schema = generation_schema(manifest(output=output), encode(last=1).prompt)
    assert schema is not None
    for text, met in (("Acme sells.", True), ("The reason: Why", True), ("Bolt buys.", False)):
        assert bool(re.search(str(schema["pattern"]), text)) is met
    assert to_output(manifest(output=output), [(encode(), written('"Acme."'))]) == "Acme."


def test_span_numbers_become_verbatim_quotes_with_offsets() -> None:
    output = to_output(QUOTING, [(encode(), written({"why": 2, "more": [1, 4], "note": "see 2"}))])
    for quote in (output["why"], *output["more"]):
        assert TEXT[quote["start"] : quote["end"]] == quote["quote"]
    assert [q["quote"] for q in output["more"]] == [
        TEXT[s.start : s.end] for s in (split_spans(TEXT)[0], split_spans(TEXT)[3])
    ]
    assert output["note"] == "see 2"


@pytest.mark.parametrize("number", [0, -1, 99])
def test_a_span_number_that_was_not_shown_is_an_output_error(number: int) -> None:
    with pytest.raises(OutputError, match=f"span {number} is quoted"):
        to_output(QUOTING, [(encode(), written({"why": number}))])


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("{", "skill reader: the answer is not JSON"),
        ({"why": "my own words"}, "does not meet the output schema: why:"),
        ({"note": "x"}, "'why' is a required property"),
        ({"why": 1, "note": "n" * 21}, "note: .* is too long"),
    ],
)
def test_an_answer_outside_its_schema_is_an_output_error(answer: Any, message: str) -> None:
    with pytest.raises(OutputError, match=message):
        to_output(QUOTING, [(encode(), written(answer))])


def test_a_field_that_a_head_chose_comes_with_its_probability() -> None:
    output = {
        "type": "object",
        "properties": {
            "tone": {"enum": ["calm", "rude"]},
            "said": {"type": "string"},
            "score": {"type": "number", "minimum": 0, "maximum": 1},
        },
        "required": ["tone", "said", "score"],
    }
    judge = manifest(output=output, answer={"kind": "generate", "choice_field": "tone"})
    prompt = encode()
    schema = generation_schema(judge, prompt.prompt)
    assert schema is not None
    assert [*schema["properties"]] == schema["required"] == ["tone", "said"]
    answer = replace(
        written({"tone": "rude", "said": "Go."}), reading=read(choices=[0.2, 0.8]).reading
    )
    assert to_output(judge, [(prompt, answer)]) == {"tone": "rude", "said": "Go.", "score": 0.8}
    plain = manifest(output=output)
    assert generation_schema(plain, prompt.prompt) == output


@pytest.mark.parametrize(
    ("input", "chosen"),
    [
        ({"text": "Go!", "mood": "RUDE"}, "rude"),
        ({"text": "Go!", "mood": "sleepy"}, None),  # no value of the field
        ({"text": "Go!"}, None),
    ],
)
def test_what_the_input_says_of_a_field_is_not_chosen(
    input: dict[str, str], chosen: str | None
) -> None:
    judge = manifest(
        output={
            "type": "object",
            "properties": {
                "tone": {"enum": ["calm", "rude"]},
                "said": {"type": "string"},
                "score": {"type": "number"},
            },
            "required": ["said", "score"],
        },
        prompt={"question": "{{ text }}"},
        answer={
            "kind": "generate",
            "choice_field": "tone",
            "choice_given": "{{ mood | default('') | lower }}",
        },
    )
    prompt = skill_prompt(FRAME, judge, input)
    assert prompt.chosen == chosen
    schema = generation_schema(judge, prompt)
    assert schema is not None
    tone = schema["properties"]["tone"]
    if chosen is None:
        assert tone == {"enum": ["calm", "rude"]}
    else:
        assert tone == {"const": "rude"}
        assert schema["required"] == ["said", "tone"]
        answered = (encode_prompt(TOKENIZER, prompt), written({"tone": "rude", "said": "Go."}))
        assert to_output(judge, [answered]) == {"tone": "rude", "said": "Go.", "score": 1.0}


# ---------------------------------------------------------------- choices


def chooser(**answer: Any) -> Manifest:
    return manifest(
        answer={
            "kind": "choice",
            "choices": ["yes", "no", "silent"],
            "evidence_field": "evidence",
            "evidence_limit": 2,
            "no_evidence": ["silent"],
        }
        | answer,
        output={
            "type": "object",
            "properties": {"answer": {"enum": ["yes", "no", "silent"]}, "evidence": EVIDENCE},
            "required": ["answer", "score"],
        },
    )


def test_a_choice_comes_with_its_probability_and_the_spans_above_the_threshold() -> None:
    reading = read(choices=[0.1, 0.7, 0.2], evidence=[0.6, 0.1, 0.4, 0.9])
    output = to_output(chooser(), [(encode(), reading)])
    assert (output["answer"], output["score"]) == ("no", 0.7)
    assert [e["score"] for e in output["evidence"]] == [0.6, 0.9]
    assert [e["start"] for e in output["evidence"]] == sorted(
        e["start"] for e in output["evidence"]
    )


def test_evidence_is_limited_to_the_best_spans() -> None:
    reading = read(choices=[0.8, 0.1, 0.1], evidence=[0.6, 0.7, 0.8, 0.9])
    evidence = to_output(chooser(), [(encode(), reading)])["evidence"]
    assert [e["score"] for e in evidence] == [0.8, 0.9]


def test_at_least_the_best_span_is_given() -> None:
    reading = read(choices=[0.8, 0.1, 0.1], evidence=[0.1, 0.3, 0.2, 0.0])
    evidence = to_output(chooser(), [(encode(), reading)])["evidence"]
    assert [e["score"] for e in evidence] == [0.3]


def with_policy(encoded: EncodedPrompt) -> EncodedPrompt:
    """The same with a chunk of a standing index after the document's spans."""
    spans = encoded.prompt.spans
    policy = PromptSpan(len(spans) + 1, "p" * 64, 0, 9, "Be quick.", standing=True)
    shown = build_prompt(FRAME, instructions="", question="Why?", spans=(*spans, policy))
    return encode_prompt(TOKENIZER, shown)


def test_what_a_standing_index_adds_is_no_evidence_of_the_document() -> None:
    encoded = with_policy(encode())
    completion = read(choices=[0.8, 0.1, 0.1], evidence=[0.1, 0.2, 0.1, 0.1, 0.9])
    for every, count in ((False, 1), (True, 4)):
        output = to_output(chooser(), [(encoded, completion)], all_scores=every)
        assert len(output["evidence"]) == count
        assert all(TEXT[e["start"] : e["end"]] == e["quote"] for e in output["evidence"])


def test_what_a_standing_index_adds_is_not_marked() -> None:
    scores = read(span_labels=[[0.1], [0.2], [0.9], [0.1], [0.95]])
    labels = [{"name": "duty", "threshold": 0.5}]
    fields = {"marks": {"label_key": "label", "quote_key": "quote"}}
    marking = manifest(
        answer={"kind": "marks", "labels": labels, "fields": fields},
        output={"type": "object"},
    )
    marks = to_output(marking, [(with_policy(encode()), scores)])["marks"]
    assert [TEXT[m["start"] : m["end"]] for m in marks] == [marks[0]["quote"]]
    alone = read(span_labels=[[0.95]])  # where there is no document, the passages are labelled
    (mark,) = to_output(marking, [(with_policy(encode(last=0)), alone)])["marks"]
    assert mark["quote"] == "Be quick."


@pytest.mark.parametrize("closed", [False, True])
def test_evidence_without_a_document_says_where_it_is_from_if_it_may(closed: bool) -> None:
    items = EVIDENCE["items"] | {
        "properties": dict.fromkeys(("quote", "start", "end", "score"), True),
        "additionalProperties": not closed,
    }
    properties = {"answer": {"enum": ["yes", "no", "silent"]}, "evidence": {"items": items}}
    choosing = chooser().model_copy(update={"output": {"type": "object", "properties": properties}})
    completion = read(choices=[0.8, 0.1, 0.1], evidence=[0.9])
    (piece,) = to_output(choosing, [(with_policy(encode(last=0)), completion)])["evidence"]
    assert piece.get("document") == (None if closed else "p" * 64)


def test_a_quote_is_of_the_document_and_of_a_standing_index_where_there_is_none() -> None:
    encoded = with_policy(encode())
    schema = generation_schema(QUOTING, encoded.prompt)
    assert schema is not None
    assert schema["properties"]["why"]["maximum"] == 4
    alone = with_policy(encode(last=0))
    schema = generation_schema(QUOTING, alone.prompt)
    assert schema is not None
    assert schema["properties"]["why"]["maximum"] == 1
    quote = to_output(QUOTING, [(alone, written({"why": 1}))])["why"]
    assert quote == {"quote": "Be quick.", "start": 0, "end": 9, "document": "p" * 64}


def test_a_choice_that_nothing_speaks_of_has_no_evidence() -> None:
    reading = read(choices=[0.1, 0.1, 0.8], evidence=[0.9, 0.9, 0.9, 0.9])
    assert to_output(chooser(), [(encode(), reading)])["evidence"] == []


def test_all_scores_gives_every_span_whatever_the_choice() -> None:
    reading = read(choices=[0.1, 0.1, 0.8], evidence=[0.9, 0.0, 0.2, 0.1])
    evidence = to_output(chooser(), [(encode(), reading)], all_scores=True)["evidence"]
    assert [e["score"] for e in evidence] == pytest.approx([0.9, 0.0, 0.2, 0.1])


def test_of_several_windows_the_one_that_speaks_of_it_decides() -> None:
    silent = (encode(last=2), read(choices=[0.01, 0.04, 0.95], evidence=[0.9, 0.9]))
    speaks = (encode(first=2), read(choices=[0.2, 0.5, 0.3], evidence=[0.2, 0.7]))
    for answers in ([silent, speaks], [speaks, silent]):
        output = to_output(chooser(), answers)
        assert output["answer"] == "no"
        assert [e["quote"] for e in output["evidence"]] == ["It ends here."]


def test_without_a_silent_choice_the_surest_window_decides() -> None:
    unsure = (encode(last=2), read(choices=[0.4, 0.35, 0.25], evidence=[0.9, 0.9]))
    sure = (encode(first=2), read(choices=[0.05, 0.9, 0.05], evidence=[0.2, 0.7]))
    for answers in ([unsure, sure], [sure, unsure]):
        assert to_output(chooser(no_evidence=[]), answers)["answer"] == "no"


def test_a_choice_by_likelihood_takes_the_likeliest() -> None:
    likely = manifest(
        answer={"kind": "choice", "choices": ["a", "b"], "scoring": "likelihood", "field": "pick"},
        output={"type": "object", "required": ["pick", "score"]},
    )
    completion = Completion(usage=Usage(), choices={"a": 0.25, "b": 0.75})
    assert to_output(likely, [(encode(), completion)]) == {"pick": "b", "score": 0.75}


def test_a_document_without_spans_gets_a_choice_without_evidence() -> None:
    reading = read(choices=[0.8, 0.1, 0.1], evidence=np.zeros(0))
    assert to_output(chooser(), [(encode(""), reading)])["evidence"] == []


def test_a_choice_outside_the_output_schema_is_an_output_error() -> None:
    narrow = chooser().model_copy(update={"output": {"properties": {"answer": {"enum": ["no"]}}}})
    reading = read(choices=[0.8, 0.1, 0.1], evidence=[0.1] * 4)
    with pytest.raises(OutputError, match="answer: 'yes' is not one of"):
        to_output(narrow, [(encode(), reading)])


# ---------------------------------------------------------------- marks

MARKS = {
    "kind": "marks",
    "labels": [
        {"name": "duty"},
        {"name": "end", "threshold": 0.8, "limit": 1},
        {"name": "party", "unit": "token"},
    ],
    "fields": {
        "clauses": {"label_key": "kind", "quote_key": "quote", "labels": ["duty", "end"]},
        "names": {"label_key": "name", "quote_key": "value", "labels": ["party"]},
    },
}
LABELLER = manifest(answer=MARKS, output={"type": "object", "required": ["clauses", "names"]})


def token_scores(encoded: EncodedPrompt, words: dict[str, float], text: str = TEXT) -> np.ndarray:
    """`(tokens, 1)`: a word's score on every token that lies in it, else nothing."""
    scores = np.zeros((len(encoded.token_offsets), 1), dtype=np.float32)
    for word, score in words.items():
        start = text.index(word)
        for row, (_, left, right) in enumerate(encoded.token_offsets):
            if left < start + len(word) and start < right:
                scores[row] = score
    return scores


def labels(encoded: EncodedPrompt, rows: list[list[float]], words: dict[str, float]) -> Completion:
    return read(span_labels=rows, token_labels=token_scores(encoded, words))


def test_spans_above_their_labels_threshold_are_marked() -> None:
    encoded = encode()
    rows = [[0.9, 0.0], [0.5, 0.0], [0.49, 0.79], [0.0, 0.95]]
    output = to_output(LABELLER, [(encoded, labels(encoded, rows, {}))])
    assert [(m["kind"], m["score"]) for m in output["clauses"]] == [
        ("duty", 0.9),
        ("duty", 0.5),
        ("end", 0.95),
    ]
    assert output["names"] == []


def test_a_label_keeps_its_best_marks_over_all_windows() -> None:
    parts = [(encode(last=2), [[0, 0.85], [0, 0.0]]), (encode(first=2), [[0, 0.0], [0, 0.9]])]
    answers = [(e, labels(e, rows, {})) for e, rows in parts]
    output = to_output(LABELLER, answers)
    assert [m["quote"] for m in output["clauses"]] == ["It ends here."]


def test_a_run_of_tokens_becomes_one_mark_without_its_punctuation() -> None:
    encoded = encode()
    output = to_output(
        LABELLER, [(encoded, labels(encoded, [[0, 0]] * 4, {" Bolt Inc.": 0.75, "Acme": 0.6}))]
    )
    assert [(m["value"], m["score"]) for m in output["names"]] == [
        ("Acme", 0.6),
        ("Bolt Inc.", 0.75),
    ]
    for mark in output["names"]:
        assert TEXT[mark["start"] : mark["end"]] == mark["value"]


def test_runs_within_one_word_are_one_mark() -> None:
    text = "Acmecorp and Bolt sign."
    encoded = encode(text)
    scores = token_scores(encoded, {"Bolt": 0.7}, text)
    pieces = [row for row, (_, left, _) in enumerate(encoded.token_offsets) if left < 8]
    assert len(pieces) > 2
    scores[pieces[0]], scores[pieces[-1]] = 0.6, 0.9
    completion = read(span_labels=[[0, 0]], token_labels=scores)
    names = to_output(LABELLER, [(encoded, completion)])["names"]
    assert [(m["value"], m["start"], m["end"], m["score"]) for m in names] == [
        ("Acmecorp", 0, 8, 0.9),
        ("Bolt", 13, 17, 0.7),
    ]


def test_a_run_never_crosses_a_span() -> None:
    encoded = encode()
    scores = np.full((len(encoded.token_offsets), 1), 0.9)
    completion = read(span_labels=[[0, 0]] * 4, token_labels=scores)
    names = to_output(LABELLER, [(encoded, completion)])["names"]
    assert len(names) == len(encoded.prompt.spans)
    for mark, span in zip(names, encoded.prompt.spans, strict=True):
        assert span.start <= mark["start"] < mark["end"] <= span.end


def test_a_run_below_the_threshold_is_no_mark_but_all_scores_shows_it() -> None:
    encoded = encode()
    completion = labels(encoded, [[0.1, 0.2]] * 4, {"Acme": 0.3})
    assert to_output(LABELLER, [(encoded, completion)]) == {"clauses": [], "names": []}
    output = to_output(LABELLER, [(encoded, completion)], all_scores=True)
    assert len(output["clauses"]) == 8  # every span for every label, beyond the limit too
    assert [m["value"] for m in output["names"]] == ["Acme"]


def test_a_heads_own_cuts_decide_where_the_skill_says_nothing() -> None:
    encoded = encode()
    words = token_scores(encoded, {"Acme": 0.3, "Bolt": 0.08})
    rows = [[0.25, 0.0], [0.15, 0.7], [0.1, 0.85], [0.0, 0.0]]
    completion = read(span_labels=rows, token_labels=words, span_cuts=[0.2, 0.1], token_cuts=[0.2])
    output = to_output(LABELLER, [(encoded, completion)])
    assert [(m["kind"], m["score"]) for m in output["clauses"]] == [("duty", 0.25), ("end", 0.85)]
    assert [m["value"] for m in output["names"]] == ["Acme"]
    every = to_output(LABELLER, [(encoded, completion)], all_scores=True)
    assert [m["value"] for m in every["names"]] == ["Acme"]  # from half of the cut on


def test_marks_of_all_windows_stand_in_document_order() -> None:
    first, second = encode(last=2), encode(first=2)
    rows = [[0.9, 0.0], [0.9, 0.0]]
    answers = [(second, labels(second, rows, {})), (first, labels(first, rows, {}))]
    starts = [m["start"] for m in to_output(LABELLER, answers)["clauses"]]
    assert starts == sorted(starts)
    assert len(starts) == 4


@given(
    st.text(st.sampled_from("aB .,;()\n\u00e9\u4e2d\U0001f600\u201c"), max_size=80),
    st.data(),
)
def test_every_quote_is_the_documents_text_at_its_offsets(text: str, data: st.DataObject) -> None:
    encoded = encode(text)
    score = st.sampled_from([0.0, 0.3, 0.6, 0.9])

    def some(rows: int, columns: int) -> np.ndarray:
        drawn = data.draw(st.lists(score, min_size=rows * columns, max_size=rows * columns))
        return np.array(drawn, dtype=np.float32).reshape(rows, columns)

    spans = len(encoded.prompt.spans)
    marks = read(span_labels=some(spans, 2), token_labels=some(len(encoded.token_offsets), 1))
    choice = read(choices=[0.8, 0.1, 0.1], evidence=some(spans, 1)[:, 0])
    for all_scores in (False, True):
        output = to_output(LABELLER, [(encoded, marks)], all_scores=all_scores)
        quotes = [(m["quote"], m) for m in output["clauses"]]
        quotes += [(m["value"], m) for m in output["names"]]
        answer = to_output(chooser(), [(encoded, choice)], all_scores=all_scores)
        quotes += [(e["quote"], e) for e in answer["evidence"]]
        for quote, place in quotes:
            assert quote
            assert text[place["start"] : place["end"]] == quote
