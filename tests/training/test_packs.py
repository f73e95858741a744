"""Packs hold the very tokens that are served, each question seeing only what it is served with."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from agentkit.errors import InputError
from agentkit.prompt import encode_prompt, frame_of, number_spans, skill_prompt
from agentkit.retrieval.spans import split_spans
from agentkit.skill.manifest import Manifest
from agentkit.testing import tiny_tokenizer
from agentkit.training.checks import check_lengths
from agentkit.training.model import asked_rows, questions
from agentkit.training.packs import Pack, Packer
from agentkit.training.rows import Row
from agentkit.types import Document, EncodedPrompt

TOKENIZER = tiny_tokenizer()
FRAME = frame_of(TOKENIZER)
TEXT = "The gate is red. The wall is old. Nobody paints it. Ann owns the house."

CHOICE: dict[str, Any] = {
    "instructions": "Judge the rule.",
    "prompt": {"question": "Rule: {{ rule }}"},
    "answer": {
        "kind": "choice",
        "choices": ["yes", "no", "silent"],
        "evidence_field": "evidence",
        "no_evidence": ["silent"],
    },
    "retrieval": {"document": "document"},
}
MARKS: dict[str, Any] = {
    "prompt": {"question": ""},
    "answer": {
        "kind": "marks",
        "labels": [{"name": "colour"}, {"name": "owner", "unit": "token"}, {"name": "age"}],
        "fields": {"marks": {"label_key": "label", "quote_key": "quote"}},
    },
    "retrieval": {"document": "document"},
}
WRITE: dict[str, Any] = {
    "instructions": "Say it.",
    "prompt": {"question": "Topic: {{ topic }}"},
    "output": {"type": "object"},
}


def manifest(values: dict[str, Any], **more: Any) -> Manifest:
    return Manifest.model_validate({"name": "x", "description": "x"} | values | more)


def packer(values: dict[str, Any], tokens: int = 4096) -> Packer:
    return Packer(TOKENIZER, FRAME, manifest(values), tokens)


def served(values: dict[str, Any], row: Row) -> EncodedPrompt:
    """The prompt that the row's input gets when the skill is asked."""
    field = values.get("retrieval", {}).get("document")
    text = row.input.get(field) if field else None
    spans = ()
    if text is not None:
        spans = number_spans(Document("", "", "text/plain", text, spans=split_spans(text)))
    return encode_prompt(TOKENIZER, skill_prompt(FRAME, manifest(values), row.input, spans))


def place(words: str, text: str = TEXT) -> dict[str, int]:
    return {"start": text.index(words), "end": text.index(words) + len(words)}


def rule(text: str, answer: str, *evidence: str) -> Row:
    expected = {"answer": answer, "evidence": [place(words) for words in evidence]}
    return Row({"rule": text, "document": TEXT}, expected, "g")


def branch(pack: Pack, number: int) -> list[int]:
    """Token ids of the prefix and one branch, as if they stood alone."""
    return [i for i, b in zip(pack.ids, pack.branch, strict=True) if b in (0, number)]


def positions(pack: Pack, number: int) -> list[int]:
    return [p for p, b in zip(pack.positions, pack.branch, strict=True) if b in (0, number)]


RULES = [
    rule("The gate is red.", "yes", "The gate is red."),
    rule("The wall is new, or almost so.", "no", "The wall is old."),
    rule("There is a dog.", "silent"),
]


# ---------------------------------------------------------------- prompts


def test_each_branch_of_a_pack_is_the_prompt_that_is_served() -> None:
    (pack,) = packer(CHOICE).pack(RULES)
    for number, row in enumerate(RULES, start=1):
        alone = served(CHOICE, row)
        assert tuple(branch(pack, number)) == alone.ids
        assert positions(pack, number) == list(range(len(alone.ids)))
        assert tuple(pack.span_ends) == alone.span_ends
        assert pack.token_at == [index for index, _, _ in alone.token_offsets]
        at = pack.answer_at[number - 1]
        assert pack.branch[at] == number
        assert at + 1 == len(pack.ids) or pack.branch[at + 1] != number  # its last token


def test_a_branch_sees_the_prefix_and_itself_only() -> None:
    (pack,) = packer(CHOICE).pack(RULES)
    seen = pack.mask(torch.float32)[0, 0] == 0
    for at, own in enumerate(pack.branch):
        for other, theirs in enumerate(pack.branch):
            assert seen[at, other] == (other <= at and theirs in (0, own))


def test_choices_and_their_evidence_are_what_the_rows_say() -> None:
    (pack,) = packer(CHOICE).pack(RULES)
    assert pack.choice == [0, 1, 2]
    assert pack.evidence == [(0, 0), (1, 1)]
    assert pack.rows == [0, 1, 2]


def test_rows_over_other_documents_go_to_other_packs() -> None:
    other = Row({"rule": "R", "document": TEXT + " More."}, {"answer": "no"}, "h")
    packs = packer(CHOICE).pack([RULES[0], other, RULES[1]])
    assert [pack.rows for pack in packs] == [[0, 2], [1]]


def test_a_window_without_the_evidence_teaches_that_nothing_speaks_of_it() -> None:
    packs = packer(CHOICE, tokens=60).pack([RULES[0]])
    assert len(packs) > 1
    assert [pack.choice for pack in packs] == [[0]] + [[2]] * (len(packs) - 1)
    assert [bool(pack.evidence) for pack in packs] == [True] + [False] * (len(packs) - 1)


def test_a_window_that_can_teach_nothing_is_no_pack() -> None:
    values = CHOICE | {"answer": CHOICE["answer"] | {"no_evidence": []}}
    packs = packer(values, tokens=60).pack([RULES[0]])
    assert [pack.choice for pack in packs] == [[0]]


def test_a_choice_without_a_document_is_packed_by_itself() -> None:
    values = CHOICE | {"retrieval": {}}
    row = Row({"rule": "R"}, {"answer": "yes"}, "g")
    (pack,) = packer(values).pack([row])
    assert tuple(branch(pack, 1)) == served(values, row).ids
    assert pack.span_ends == []


@pytest.mark.parametrize("expected", [{"answer": "maybe"}, {}, None, "yes"])
def test_an_answer_that_is_no_choice_names_the_row(expected: Any) -> None:
    with pytest.raises(InputError, match=r"row 1: answer is .*, not one of yes, no, silent"):
        packer(CHOICE).pack([RULES[0], Row({"rule": "R", "document": TEXT}, expected, "g")])


# ---------------------------------------------------------------- texts


def taught(pack: Pack, number: int) -> list[int]:
    return [token for at, token in pack.targets if pack.branch[at] == number]


def test_a_written_answer_follows_the_served_prompt_and_ends() -> None:
    rows = [
        Row({"topic": "gates"}, {"said": "Red — yes."}, "a"),
        Row({"topic": "walls"}, "plain <|im_end|> words", "b"),
    ]
    (pack,) = packer(WRITE).pack(rows)
    texts = ['{"said":"Red — yes."}', "plain <|im_end|> words"]
    for number, row in enumerate(pack.rows, start=1):
        text = texts[row]
        alone = list(served(WRITE, rows[row]).ids)
        said = TOKENIZER(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert branch(pack, number) == alone + said
        assert taught(pack, number) == [*said, TOKENIZER.eos_token_id]
        first = min(at for at, _ in pack.targets if pack.branch[at] == number)
        assert pack.positions[first] == len(alone) - 1  # the prompt's last token
        for at, token in pack.targets:
            if pack.branch[at] == number and at + 1 < len(pack.ids):
                follows = pack.ids[at + 1] if pack.branch[at + 1] == number else None
                assert follows in (token, None)


@pytest.mark.parametrize(
    ("output", "learnt"),
    [
        ({"type": "string"}, 'a "b"'),
        ({"type": "string", "maxLength": 30}, r'"a \"b\""'),
        ({"enum": ['a "b"', "c"]}, r'"a \"b\""'),
    ],
)
def test_a_text_is_learnt_as_it_is_written_in_quotes_where_a_grammar_holds_it(
    output: dict[str, Any], learnt: str
) -> None:
    (pack,) = packer(WRITE | {"output": output}).pack([Row({"topic": "gates"}, 'a "b"', "a")])
    said = TOKENIZER(learnt, add_special_tokens=False)["input_ids"]
    assert taught(pack, 1) == [*said, TOKENIZER.eos_token_id]


def test_a_quote_that_is_in_no_span_names_its_row() -> None:
    quoted = {"type": "object", "properties": {"clause": {"x-quote": True}}}
    values = WRITE | {"output": quoted, "retrieval": {"document": "document"}}
    wrong = {"clause": {"quote": "The", "start": 900, "end": 903}}
    row = Row({"topic": "gates", "document": TEXT}, wrong, "a", "rows.jsonl:7")
    with pytest.raises(InputError, match="in no span of the document") as error:
        packer(values).pack([row])
    assert error.value.where == "rows.jsonl:7"


def test_of_many_rows_in_a_pack_the_one_that_is_too_long_is_named() -> None:
    values = CHOICE | {"retrieval": {}}
    rows = [
        Row({"rule": text}, {"answer": "yes"}, "g", f"rows.jsonl:{at}")
        for at, text in enumerate(("Short.", "word " * 600, "Short again."), start=1)
    ]
    (pack, *_) = packs = packer(values).pack(rows)
    assert len(pack.rows) > 1
    check_lengths(packs, rows, 10_000)
    with pytest.raises(InputError, match="and the backbone reads 512") as error:
        check_lengths(packs, rows, 512)
    assert error.value.where == "rows.jsonl:2"


def test_marks_that_are_null_are_none() -> None:
    (pack,) = packer(MARKS).pack([Row({"document": TEXT}, {"marks": None}, "a")])
    assert (pack.span_labels, pack.token_labels) == ([], [])


def test_a_choice_that_the_input_gives_is_written_but_not_asked_of_a_head() -> None:
    values = {
        "prompt": {"question": "{{ text }}"},
        "answer": {
            "kind": "generate",
            "choice_field": "tone",
            "choice_given": "{{ mood | default('') }}",
        },
        "output": {
            "type": "object",
            "properties": {"tone": {"enum": ["calm", "rude"]}, "score": {"type": "number"}},
            "required": ["tone", "score"],
        },
    }
    rows = [
        Row({"text": "One.", "mood": "rude"}, {"tone": "rude"}, "a"),
        Row({"text": "Two."}, {"tone": "calm"}, "b"),
        Row({"text": "Three, with more words."}, {"tone": "rude"}, "c"),
    ]
    (pack,) = packer(values).pack(rows)
    at = {row: number for number, row in enumerate(pack.rows, start=1)}
    assert len(at) == 3
    assert sorted(zip(asked_rows(pack), pack.choice, strict=True)) == [(1, 0), (2, 1)]
    for row, asked in zip(asked_rows(pack), questions(pack), strict=True):
        assert set(pack.branch[asked]) == {at[row]}
        prompt = encode_prompt(TOKENIZER, skill_prompt(FRAME, manifest(values), rows[row].input))
        assert pack.ids[asked] == list(prompt.ids[prompt.question_start :])
    assert all(taught(pack, at[row]) for row in range(3))


def test_rows_of_two_sources_are_mixed_in_the_same_way_each_time() -> None:
    rows = [Row({"topic": "t"}, "first" if n < 20 else "second", str(n)) for n in range(40)]
    packs = packer(WRITE, tokens=400).pack(rows)
    assert len(packs) > 2
    assert all(min(pack.rows) < 20 <= max(pack.rows) for pack in packs)
    assert [pack.rows for pack in packer(WRITE, tokens=400).pack(rows)] == [p.rows for p in packs]


def test_packs_of_texts_are_closed_when_they_are_full() -> None:
    rows = [Row({"topic": "t"}, "word " * 40, str(n)) for n in range(6)]
    packs = packer(WRITE, tokens=400).pack(rows)
    assert sorted(number for pack in packs for number in pack.rows) == list(range(6))
    assert len(packs) > 1
    assert all(len(pack.ids) <= 400 for pack in packs)


def test_a_choice_by_likelihood_is_taught_as_its_text() -> None:
    answer = {"kind": "choice", "choices": ["glad", "sad"], "scoring": "likelihood"}
    values = WRITE | {"answer": answer}
    row = Row({"topic": "t"}, {"answer": "sad"}, "g")
    (pack,) = packer(values).pack([row])
    said = TOKENIZER("sad", add_special_tokens=False)["input_ids"]
    assert taught(pack, 1) == [*said, TOKENIZER.eos_token_id]
    assert branch(pack, 1)[: -len(said)] == list(served(values, row).ids)
    with pytest.raises(InputError, match="row 0: answer is 'mad'"):
        packer(values).pack([Row({"topic": "t"}, {"answer": "mad"}, "g")])


def test_a_row_without_an_answer_cannot_be_written() -> None:
    with pytest.raises(InputError, match="row 0: "):
        packer(WRITE).pack([Row({"topic": "t"}, None, "g")])


RATED: dict[str, Any] = WRITE | {
    "output": {
        "type": "object",
        "properties": {"said": {"type": "string"}, "rating": {"enum": ["good", "bad"]}},
        "required": ["said", "rating"],
    }
}


def test_an_answer_is_written_in_the_order_that_its_schema_is_served_in() -> None:
    (pack,) = packer(RATED).pack([Row({"topic": "t"}, {"rating": "bad", "said": "Red."}, "g")])
    said = TOKENIZER('{"said":"Red.","rating":"bad"}', add_special_tokens=False)["input_ids"]
    assert taught(pack, 1) == [*said, TOKENIZER.eos_token_id]


# ---------------------------------------------------------------- marks


def marked(*marks: tuple[str, str]) -> Row:
    expected = {"marks": [{"label": label} | place(words) for label, words in marks]}
    return Row({"document": TEXT}, expected, "g")


def test_marks_are_pairs_of_span_or_token_and_label() -> None:
    row = marked(("colour", "The gate is red."), ("age", "wall is old"), ("owner", "Ann"))
    (pack,) = packer(MARKS).pack([row])
    assert pack.span_labels == [(0, 0), (1, 1)]
    encoded = served(MARKS, row)
    named = {encoded.token_offsets[token][1:] for token, label in pack.token_labels if label == 0}
    ann = place("Ann")
    assert min(start for start, _ in named) <= ann["start"]
    assert max(end for _, end in named) == ann["end"]


def test_a_pack_of_marks_ends_with_the_document() -> None:
    row = marked(("age", "wall is old"))
    (pack,) = packer(MARKS).pack([row])
    encoded = served(MARKS, row)
    assert tuple(pack.ids) == encoded.ids[: encoded.document_end]
    assert set(pack.branch) == {0}
    assert len(pack.positions) == len(pack.branch) == len(pack.ids)


def test_every_span_of_a_long_document_is_in_one_window() -> None:
    row = marked(("colour", "The gate is red."), ("age", "The wall is old."))
    packs = packer(MARKS, tokens=40).pack([row])
    assert len(packs) > 1
    assert sum(len(pack.span_ends) for pack in packs) == len(split_spans(TEXT))
    assert sum(len(pack.span_labels) for pack in packs) == 2


def test_an_empty_document_makes_no_pack() -> None:
    assert packer(MARKS).pack([Row({"document": "  \n"}, {"marks": []}, "g")]) == []


def test_a_label_that_the_skill_does_not_give_is_passed_over() -> None:
    (pack,) = packer(MARKS).pack([marked(("smell", "wall"))])
    assert pack.span_labels == pack.token_labels == []


def test_a_quote_is_learnt_as_the_number_of_its_span() -> None:
    values = {
        **WRITE,
        "output": {"type": "object", "properties": {"why": {"x-quote": True}}},
        "retrieval": {"document": "document"},
    }
    start = TEXT.index("The wall")
    why = {"quote": "The wall is old.", "start": start, "end": start + 16}
    row = Row({"topic": "age", "document": TEXT}, {"why": why}, "g")
    (pack,) = packer(values).pack([row])
    said = TOKENIZER.decode([token for _, token in pack.targets][:-1])
    assert said.replace(" ", "") == '{"why":2}'


def test_many_questions_without_a_document_make_several_packs() -> None:
    values = {key: value for key, value in CHOICE.items() if key != "retrieval"}
    rows = [Row({"rule": f"rule {n}"}, {"answer": "yes"}, str(n)) for n in range(60)]
    packs = packer(values, tokens=200).pack(rows)
    assert len(packs) > 1
    assert [number for pack in packs for number in pack.rows] == list(range(60))
    assert all(len(pack.ids) < 300 for pack in packs)
