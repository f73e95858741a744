"""Records of CUAD: whole contracts, clauses, and contracts that are asked rules."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from agentkit.retrieval.spans import split_spans
from agentkit.training.clause_patterns import ClausePatterns
from agentkit.training.clause_rules import Asked, ClauseRules, excerpt, plain_answers
from agentkit.training.cuad import CONTRACTS, filer, labelled_places
from agentkit.training.jsonl import Record, read_jsonl
from agentkit.training.plain_words import PlainWords
from agentkit.training.sentence_rules import Sentence, sentence_rules, sentences
from agentkit.training.statements import Statements

_PLAIN = 0.6
"""Share of the sentences' rules that are put in plain words."""


def cuad(folder: Path, rng: random.Random) -> Iterator[Record]:
    for contract in read_jsonl(folder / CONTRACTS):
        yield {
            "group": f"cuad/{filer(contract['title'])}",
            "document": contract["text"],
            "labels": [
                {"category": category, "start": start, "end": end}
                for category, places in labelled_places(contract).items()
                for start, end in places
            ],
        }


def cuad_clauses(
    folder: Path, rng: random.Random, *, statements: str | None = None, each: int | None = None
) -> Iterator[Record]:
    """A clause each, at most `each` of a category, with a statement about it if any are given."""
    said = Statements(read_jsonl(Path(statements)), where=statements) if statements else None
    records: dict[str, list[Record]] = defaultdict(list)
    for contract in read_jsonl(folder / CONTRACTS):
        for category, content in contract["labels"].items():
            for clause in content["clauses"]:
                words = " ".join(clause.split())
                record = {
                    "group": f"cuad/{filer(contract['title'])}",
                    "clause": words,
                    "category": category,
                }
                if said is not None:
                    record |= said.of(category, words, rng)
                records[category].append(record)
    for found in records.values():
        rng.shuffle(found)
        yield from found[:each]


def cuad_rules(
    folder: Path,
    rng: random.Random,
    *,
    rules: str,
    part_of: Callable[[str], str],
    unseen: bool = False,
    whole: bool = False,
    longest: int | None = None,
    opposites: bool = False,
    both: bool = False,
    characters: int = 10_000,
    absent: int = 5,
    patterns: str | None = None,
    without: Sequence[str] = (),
) -> Iterator[Record]:
    """Contracts asked rules that their labelled clauses decide, and `absent` that nothing decides.

    A document is put together from the passages around labelled clauses, of every category, until
    it has `characters`. `whole` gives whole contracts, each rule asked together with its opposite
    (`opposite` is its text, with `opposites` a record of its own, too; `both`: those that nothing
    decides as well): what a rule is measured with; contracts of more than `longest` characters are
    left out. `unseen` takes the rules that
    are kept for that. `patterns` finds clauses of more categories than are labelled. `without`
    leaves out the rules of some categories.
    """
    asking = ClauseRules(read_jsonl(Path(rules)), unseen=unseen, where=rules, without=without)
    found_by = ClausePatterns(
        read_jsonl(Path(patterns)) if patterns else (), where=patterns or "patterns"
    )
    contracts = [
        (f"cuad/{filer(contract['title'])}", contract)
        for contract in read_jsonl(folder / CONTRACTS)
    ]
    said: dict[tuple[str, str], list[str]] = defaultdict(list)
    for group, contract in contracts:
        for category, content in contract["labels"].items():
            said[part_of(group), category].append(str(content["answer"]))
    answers = {where: plain_answers(texts) for where, texts in said.items()}
    for group, contract in contracts:
        if longest is not None and len(contract["text"]) > longest:
            continue
        labels = contract["labels"]
        found = labelled_places(contract) | found_by.places(contract["text"])
        lacking = set(found_by.lacking(contract["text"]))
        missing = sorted(
            category
            for category in asking.categories
            if (
                category in lacking
                if category in found_by
                else not labels.get(category, {}).get("clauses")
            )
        )
        text, places = (
            (contract["text"], found)
            if whole
            else excerpt(contract["text"], found, characters, rng)
        )
        asked: list[tuple[Asked, Asked | None]] = []
        for category in sorted(places.keys() & set(asking.categories)):
            answer = str(labels.get(category, {}).get("answer", ""))
            others = answers.get((part_of(group), category), [])
            if whole:
                one = asking.one(category, answer, others, rng, negated=False)
                if one is not None:
                    asked.append((one, asking.one(category, answer, others, rng, negated=True)))
            else:
                asked += [(one, None) for one in asking.about(category, answer, others, rng)]
        for category in rng.sample(missing, min(absent, len(missing))):
            others = answers.get((part_of(group), category), [])
            none = asking.absent(category, others, rng, negated=0.0 if whole else 0.3)
            if none is not None:
                turned = asking.absent(category, others, rng, negated=1.0) if both else None
                asked.append((none, turned))
        rng.shuffle(asked)
        if opposites:
            asked += [(opposite, None) for _, opposite in asked if opposite is not None]
        for one, opposite in asked:
            yield {
                "group": group,
                "document": text,
                "hypothesis": one.text,
                "label": one.label,
                "category": one.category,
                "opposite": opposite.text if opposite else None,
                "evidence": [
                    {"start": start, "end": end} for start, end in places.get(one.category, ())
                ],
            }


def cuad_sentences(
    folder: Path,
    rng: random.Random,
    *,
    part_of: Callable[[str], str],
    decided: int = 10,
    absent: int = 4,
    words: str | None = None,
) -> Iterator[Record]:
    """Sentences of a contract, with those that follow them, asked what they say and deny.

    Of each contract at most `decided` sentences; `absent` rules are made of those of other
    contracts of its part. `words` puts most rules in plain words.
    """
    plain = PlainWords(read_jsonl(Path(words)) if words else (), where=words or "words")
    known: list[tuple[str, str, list[Sentence]]] = []
    parts: dict[str, list[tuple[str, list[Sentence]]]] = defaultdict(list)
    for contract in read_jsonl(folder / CONTRACTS):
        found = list(sentences(contract["text"]))
        chosen = sorted(rng.sample(found, min(decided, len(found))), key=lambda one: one.start)
        if chosen:
            group = f"cuad/{filer(contract['title'])}"
            known.append((group, contract["text"], chosen))
            parts[part_of(group)].append((group, chosen))
    for group, text, own in known:
        part = parts[part_of(group)]
        strange = [
            one
            for other, some in rng.sample(part, min(9, len(part)))
            if other != group
            for one in some
        ]
        document, places = _with_what_follows(text, own)
        for rule, label, by in sentence_rules(own, strange, rng, absent=absent):
            yield {
                "group": group,
                "document": document,
                "hypothesis": plain.of(rule) if plain and rng.random() < _PLAIN else rule,
                "label": label,
                "evidence": [places[by]] if by is not None else [],
            }


def cuad_restated(folder: Path, rng: random.Random, *, each: int = 1) -> Iterator[Record]:
    """Passages of contracts, `each` so many, and their first sentence without its number.

    Only sentences without conditions: what is left out of them would make the statement untrue.
    """
    for contract in read_jsonl(folder / CONTRACTS):
        text = contract["text"]
        spans = split_spans(text)
        following = {one.start: next_.end for one, next_ in pairwise(spans)}
        whole = [
            one
            for one in sentences(text)
            if " ".join(text[one.start : one.end].split()).rstrip(" .;").endswith(one.rest)
        ]
        for one in rng.sample(whole, min(each, len(whole))):
            yield {
                "group": f"cuad/{filer(contract['title'])}",
                "quote": " ".join(text[one.start : following.get(one.start, one.end)].split()),
                "statement": f"{one.subject} {one.verb} {one.rest}.",
            }


def _with_what_follows(
    text: str, chosen: Sequence[Sentence]
) -> tuple[str, dict[Sentence, dict[str, int]]]:
    """The sentences and each one's next, as one text, and the sentences' places in it."""
    spans = split_spans(text)
    at = {span.start: number for number, span in enumerate(spans)}
    kept = sorted({at[one.start] + step for one in chosen for step in (0, 1)} & {*at.values()})
    pieces, moved, end = [], {}, 0
    for number in kept:
        piece = text[spans[number].start : spans[number].end]
        moved[spans[number].start] = {"start": end, "end": end + len(piece)}
        pieces.append(piece)
        end += len(piece) + 2
    return "\n\n".join(pieces), {one: moved[one.start] for one in chosen}
