"""Rows to packs: one document read once, with every question asked of it as a branch.

A pack is a prefix (header, document, instructions) followed by branches (question, invocation,
answer). Every branch sees the prefix and itself only, and its positions go on from the prefix's
end: the very layout, and the very states, that the engine serves with a shared prefix. 17 questions
over a document cost little more than one.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import torch
from torch import Tensor

from agentkit.errors import InputError
from agentkit.output import writes_plainly
from agentkit.prompt import (
    Frame,
    Tokenizer,
    encode_prompt,
    number_spans,
    skill_prompt,
    span_lengths,
    windows,
)
from agentkit.retrieval.spans import split_spans
from agentkit.skill.grounding import grounded_answer, shown_text
from agentkit.skill.manifest import ChoiceAnswer, GenerateAnswer, Manifest, MarksAnswer
from agentkit.skill.quoting import number_quotes
from agentkit.training.rows import Row
from agentkit.types import Document, EncodedPrompt, Json, Prompt, PromptSpan

_MIXED = 7


@dataclass(slots=True)
class Pack:
    """Token ids of a prefix and its branches, and what is to be learnt from them."""

    ids: list[int]
    branch: list[int]
    """0 in the prefix, then the branch's number; same length as `ids`."""
    positions: list[int]
    active: list[bool] = field(default_factory=list)
    """Whether a token is the invocation's or comes after it; same length as `ids`."""
    rows: list[int] = field(default_factory=list)
    """Number of the row that each branch (or, for marks, the pack) came from."""
    span_ends: list[int] = field(default_factory=list)
    token_at: list[int] = field(default_factory=list)
    answer_at: list[int] = field(default_factory=list)
    """The index at which a branch's choice is read, of each that has one to be read."""
    choice: list[int] = field(default_factory=list)
    """By the same order."""
    evidence: list[tuple[int, int]] = field(default_factory=list)
    """`(branch - 1, span)` of every span that carries a branch's choice."""
    span_labels: list[tuple[int, int]] = field(default_factory=list)
    """`(span, label)` pairs that hold."""
    token_labels: list[tuple[int, int]] = field(default_factory=list)
    """`(document token, label)` pairs that hold."""
    targets: list[tuple[int, int]] = field(default_factory=list)
    """`(index, token)`: the token to be predicted at an index."""

    def mask(self, dtype: torch.dtype, device: torch.device | None = None) -> Tensor:
        """`(1, 1, tokens, tokens)` to be added to attention scores: a row sees the prefix and,
        up to itself, its own branch."""
        branch = torch.tensor(self.branch, device=device)
        seen = (branch[None, :] == 0) | (branch[None, :] == branch[:, None])
        hidden = ~seen.tril()
        empty = torch.zeros(hidden.shape, dtype=dtype, device=device)
        return empty.masked_fill_(hidden, -1e9)[None, None]


@dataclass(frozen=True, slots=True)
class Packer:
    """Turns rows into packs as a skill's manifest says."""

    tokenizer: Tokenizer
    frame: Frame
    manifest: Manifest
    tokens: int
    """A pack holds at most so many, as far as one row fits."""

    def pack(self, rows: Sequence[Row]) -> list[Pack]:
        """Packs of all rows. Raises `InputError` for a row that does not fit the manifest."""
        answer = self.manifest.answer
        if isinstance(answer, MarksAnswer):
            return [p for number, row in enumerate(rows) for p in self._marks(row, number, answer)]
        if isinstance(answer, ChoiceAnswer):
            if answer.scoring == "head":
                return self._choices(rows, answer)
            # What is scored by its likelihood is learnt as a text that is written.
            return self._texts(
                [
                    Row(row.input, _choice_of(row, number, answer), row.group)
                    for number, row in enumerate(rows)
                ]
            )
        return self._texts(rows)

    # -- documents -----------------------------------------------------------------------

    def _document(self, row: Row) -> tuple[PromptSpan, ...]:
        field = self.manifest.retrieval.document
        text = row.input.get(field) if field and isinstance(row.input, dict) else None
        if text is None:
            return ()
        document = Document("", "", "text/plain", text, spans=split_spans(text))
        return number_spans(document)

    def _start(self, row: Row, spans: Sequence[PromptSpan]) -> tuple[Pack, EncodedPrompt]:
        encoded = self._encode(row, spans)
        end = encoded.question_start
        pack = Pack(
            ids=list(encoded.ids[:end]),
            branch=[0] * end,
            positions=list(range(end)),
            active=[False] * end,
        )
        pack.span_ends = list(encoded.span_ends)
        pack.token_at = [index for index, _, _ in encoded.token_offsets]
        return pack, encoded

    def _encode(self, row: Row, spans: Sequence[PromptSpan] = ()) -> EncodedPrompt:
        prompt = skill_prompt(self.frame, self.manifest, row.input, spans)
        return encode_prompt(self.tokenizer, prompt)

    def _append(self, pack: Pack, ids: Sequence[int], asked: int, row: int) -> int:
        """Add a branch, of which `asked` tokens come before the invocation.

        Returns the index of its first token.
        """
        prefix = pack.branch.count(0)
        start = len(pack.ids)
        pack.rows.append(row)
        pack.branch += [len(pack.rows)] * len(ids)
        pack.positions += range(prefix, prefix + len(ids))
        pack.ids += ids
        pack.active += [at >= asked for at in range(len(ids))]
        return start

    # -- choices -------------------------------------------------------------------------

    def _choices(self, rows: Sequence[Row], answer: ChoiceAnswer) -> list[Pack]:
        groups: dict[str, list[int]] = defaultdict(list)
        field = self.manifest.retrieval.document
        for number, row in enumerate(rows):
            key = row.input.get(field, "") if field and isinstance(row.input, dict) else ""
            groups[key].append(number)
        packs = []
        for numbers in groups.values():
            first = rows[numbers[0]]
            spans = self._document(first)
            lengths = span_lengths(self.tokenizer, spans)
            for window in windows(spans, lengths, self.tokens) if spans else [()]:
                pack, _ = self._start(first, window)
                # Questions take as much room beside the document as the document may take.
                room = len(pack.ids) + self.tokens if window else self.tokens
                for number in numbers:
                    if pack.answer_at and len(pack.ids) > room:
                        packs.append(pack)
                        pack, _ = self._start(first, window)
                    self._choice(pack, rows[number], number, window, answer)
                if pack.answer_at:
                    packs.append(pack)
        return packs

    def _choice(
        self,
        pack: Pack,
        row: Row,
        number: int,
        window: Sequence[PromptSpan],
        answer: ChoiceAnswer,
    ) -> None:
        label = _choice_of(row, number, answer)
        gold = row.expected.get(answer.evidence_field or "") or []
        held = [i for i, span in enumerate(window) if any(_overlap(span, g) for g in gold)]
        if gold and not held:
            if not answer.no_evidence:
                return
            # What carries the answer stands in another window: here nothing speaks of it.
            label = answer.no_evidence[0]
        encoded = self._encode(row)
        ids = encoded.ids[encoded.question_start :]
        asked = encoded.invocation_start - encoded.question_start
        start = self._append(pack, ids, asked, number)
        pack.answer_at.append(start + len(ids) - 1)
        pack.choice.append(answer.choices.index(label))
        pack.evidence += [(len(pack.rows) - 1, index) for index in held]

    # -- marks ---------------------------------------------------------------------------

    def _marks(self, row: Row, number: int, answer: MarksAnswer) -> list[Pack]:
        spans = self._document(row)
        if not spans:
            return []
        gold = list(_gold_marks(row, answer))
        units = {label.name: label.unit for label in answer.labels}
        names = {
            unit: [label.name for label in answer.labels if label.unit == unit]
            for unit in ("sentence", "token")
        }
        packs = []
        for window in windows(spans, span_lengths(self.tokenizer, spans), self.tokens):
            pack, encoded = self._start(row, window)
            # Nothing after the document matters to a head that labels the document.
            del pack.ids[encoded.document_end :]
            del pack.branch[encoded.document_end :], pack.positions[encoded.document_end :]
            del pack.active[encoded.document_end :]
            pack.rows = [number]
            for label, start, end in gold:
                place = {"start": start, "end": end}
                if label not in units:
                    continue
                at = names[units[label]].index(label)
                if units[label] == "sentence":
                    pack.span_labels += [
                        (i, at) for i, span in enumerate(window) if _overlap(span, place)
                    ]
                else:
                    pack.token_labels += [
                        (i, at)
                        for i, (_, left, right) in enumerate(encoded.token_offsets)
                        if left < end and start < right
                    ]
            packs.append(pack)
        return packs

    # -- texts ---------------------------------------------------------------------------

    def _texts(self, rows: Sequence[Row]) -> list[Pack]:
        """Rows that share a prefix are packed together, up to the pack's size.

        They are mixed first: a step over rows of one source only would pull towards that source.
        """
        packs: list[Pack] = []
        open_pack: dict[tuple[int, ...], Pack] = {}
        for number, row in Random(_MIXED).sample(list(enumerate(rows)), len(rows)):
            encoded = self._encode(row, self._document(row))
            prefix = encoded.ids[: encoded.question_start]
            asked = encoded.ids[encoded.question_start :]
            if row.expected is None:
                raise InputError("it says not what is expected", where=f"row {number}")
            said = self._answer_ids(row, encoded.prompt)
            pack = open_pack.get(prefix)
            if pack is None or len(pack.ids) + len(asked) + len(said) > self.tokens:
                pack, _ = self._start(row, encoded.prompt.spans)
                open_pack[prefix] = pack
                packs.append(pack)
            before = encoded.invocation_start - encoded.question_start
            start = self._append(pack, [*asked, *said[:-1]], before, number)
            last = start + len(asked) - 1
            pack.targets += [(last + i, token) for i, token in enumerate(said)]
            # What an input gives is never asked of a head, so it need not learn it.
            if self.manifest.head_choices and encoded.prompt.chosen is None:
                pack.answer_at.append(last)
                pack.choice.append(self._chosen(row, number))
        return packs

    def _chosen(self, row: Row, number: int) -> int:
        """Which of the head's choices a written answer has."""
        answer, choices = self.manifest.answer, self.manifest.head_choices
        field = answer.choice_field if isinstance(answer, GenerateAnswer) else None
        said = row.expected.get(field) if isinstance(row.expected, dict) and field else None
        if said not in choices:
            raise InputError(
                f"{field} is {said!r}, not one of {', '.join(choices)}", where=f"row {number}"
            )
        return choices.index(said)

    def _answer_ids(self, row: Row, prompt: Prompt) -> list[int]:
        text, spans = row.expected, prompt.spans
        if not isinstance(text, str) or self._quoted():
            try:
                answer = number_quotes(self.manifest.output, row.expected, spans)
            except InputError as error:
                error.where = row.place or error.where
                raise
            # What the grammar would never let it write is not worth learning.
            answer = grounded_answer(self.manifest.output, answer, shown_text(prompt))
            answer = _in_order(answer, self.manifest.output)
            text = json.dumps(answer, ensure_ascii=False, separators=(",", ":"))
        ids = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)
        return [*ids["input_ids"], self._end()]

    def _quoted(self) -> bool:
        """Whether a text is written as JSON has it: one with limits is held to by a grammar."""
        written = isinstance(self.manifest.answer, GenerateAnswer)
        whole = self.manifest.output.get("type") != "object"
        return written and whole and not writes_plainly(self.manifest)

    def _end(self) -> int:
        end: Any = getattr(self.tokenizer, "eos_token_id", None)
        if end is None:
            raise InputError("the backbone's tokenizer has no end token")
        return int(end)


def _in_order(answer: Json, schema: Mapping[str, Any]) -> Json:
    """The answer with its outermost fields in the schema's order, in which they are served."""
    if not isinstance(answer, dict):
        return answer
    order = [name for name in schema.get("properties", {}) if name in answer]
    return {name: answer[name] for name in dict.fromkeys([*order, *answer])}


def _choice_of(row: Row, number: int, answer: ChoiceAnswer) -> str:
    label = row.expected.get(answer.field) if isinstance(row.expected, dict) else None
    if label not in answer.choices:
        raise InputError(
            f"{answer.field} is {label!r}, not one of {', '.join(answer.choices)}",
            where=f"row {number}",
        )
    return str(label)


def _overlap(span: PromptSpan, place: dict[str, Any]) -> bool:
    """Whether a gold stretch covers half of a span, or half of it lies in the span."""
    start, end = int(place["start"]), int(place["end"])
    shared = min(span.end, end) - max(span.start, start)
    return shared > 0 and 2 * shared >= min(span.end - span.start, end - start)


def _gold_marks(row: Row, answer: MarksAnswer) -> list[tuple[str, int, int]]:
    expected = row.expected or {}
    return [
        (item[spec.label_key], int(item["start"]), int(item["end"]))
        for name, spec in answer.fields.items()
        for item in expected.get(name) or ()
    ]
