"""Public data sets, read from local copies into flat records.

A loader takes the folder of the data set's files and yields dicts; `train.yaml` maps them to a
skill's rows. Texts stay where they are: nothing of a data set is copied into this package.

| id | data set | licence | a record |
|---|---|---|---|
| contract_nli | ContractNLI (Koreeda and Manning, 2021) | CC BY 4.0 | document, hypothesis, label |
| cuad | CUAD v1 (The Atticus Project) | CC BY 4.0 | document, labels |
| cuad_clauses | the same, a clause each | CC BY 4.0 | clause, category |
| cuad_rules | the same, asked rules about its clauses | CC BY 4.0 | as contract_nli |
| cuad_restated | the same, passages and what they say | CC BY 4.0 | quote, statement |
| cuad_sentences | the same, asked what its sentences say and deny | CC BY 4.0 | as contract_nli |
| tosdr | ToS;DR | CC BY-SA 3.0 | quote, statement, rating, and topic if named |
| tosdr_pages | the same, joined into pages | CC BY-SA 3.0 | as contract_nli |
| tldrlegal | plain-English summaries (Manor and Li, 2019) | Apache-2.0 | original, summary |

The files, each of JSON lines that may have more fields than these:

| file | a line |
|---|---|
| `contract_nli/dev.jsonl.gz`, `contract_nli/train_full_50.jsonl.gz` | `text`; `spans`, pairs of \
offsets; `annotations`: by hypothesis `choice` and the numbers of its `spans` |
| `contract_nli/train_evidence.jsonl.gz` | `doc`, `hypothesis_id`, `label`, `evidence` and \
`random_spans` (passages, a line each) |
| `contract_nli/hypotheses.json` | one object: by id `{"hypothesis": ...}` |
| `cuad/contracts.jsonl.gz` | `title`, `text`; `labels`: by category `clauses` and `answer` |
| `tosdr/clauses.jsonl.gz` | `services`, `quote`, `case` (the statement), `rating` |
| `plain_english/tldrlegal.jsonl.gz` | `doc`, `original`, `summary` |

Texts are as published; CUAD's `title` is the name of the contract's file, whose first part is the
filer.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from agentkit.errors import InputError
from agentkit.training.cuad_records import (
    cuad,
    cuad_clauses,
    cuad_restated,
    cuad_rules,
    cuad_sentences,
)
from agentkit.training.jsonl import Record, read_jsonl

LICENSES = {
    "contract_nli": "CC BY 4.0",
    "cuad": "CC BY 4.0",
    "cuad_clauses": "CC BY 4.0",
    "cuad_rules": "CC BY 4.0",
    "cuad_restated": "CC BY 4.0",
    "cuad_sentences": "CC BY 4.0",
    "tosdr": "CC BY-SA 3.0",
    "tosdr_pages": "CC BY-SA 3.0",
    "tldrlegal": "Apache-2.0",
}


def load_dataset(
    name: str,
    folder: Path,
    *,
    seed: int = 7,
    part_of: Callable[[str], str] = lambda group: "",
    **options: Any,
) -> list[Record]:
    """Records of a public data set. Raises `InputError` for an unknown id or a missing file.

    Every record has `group`: records of one group must never be split between training and
    measuring. `part_of` says which part a group is in: a record that is made of several groups'
    texts takes them from one part.
    """
    if name not in _LOADERS:
        raise InputError(
            f"unknown data set {name!r}", hint=f"known data sets: {', '.join(sorted(_LOADERS))}"
        )
    if name in _MIXING:
        options["part_of"] = part_of
    try:
        return list(_LOADERS[name](folder, random.Random(seed), **options))
    except FileNotFoundError as error:
        raise InputError(
            f"data set {name!r} is not there",
            where=str(error.filename),
            hint="give the folder that holds its files with --data-dir",
        ) from error
    except TypeError as error:
        raise InputError(f"options of data set {name!r}: {error}") from error
    except KeyError as error:
        raise InputError(
            f"a record of data set {name!r} lacks {error}", where=str(folder)
        ) from error


def dataset_files(name: str, folder: Path) -> list[Path]:
    """The files that a data set is read from, for digests."""
    pattern = {
        "tosdr_pages": "tosdr",
        "cuad_clauses": "cuad",
        "cuad_rules": "cuad",
        "cuad_restated": "cuad",
        "cuad_sentences": "cuad",
        "tldrlegal": "plain_english",
    }
    return sorted(p for p in (folder / pattern.get(name, name)).iterdir() if p.is_file())


def _variants(path: str | None) -> dict[str, list[tuple[str, bool]]]:
    """Other wordings of a hypothesis: `{"hypothesis", "text", "negated"}` rows."""
    variants: dict[str, list[tuple[str, bool]]] = defaultdict(list)
    if path is not None:
        for row in read_jsonl(Path(path)):
            variants[row["hypothesis"]].append((row["text"], bool(row.get("negated"))))
    return variants


_FLIPPED = {"Entailment": "Contradiction", "Contradiction": "Entailment"}


def _contract_nli(
    folder: Path,
    rng: random.Random,
    *,
    split: str = "train_evidence",
    variants: str | None = None,
    variant_share: float = 0.5,
    variants_each: int = 0,
    skip: int = 0,
    without: Sequence[str] = (),
) -> Iterator[Record]:
    """Whole documents (`train_full_50`, `dev`), or documents put together from their evidence.

    In `train_evidence` a document is the union of the spans of all of its 17 rows, in random
    order: what answers one hypothesis is a hard negative for the others. `skip` leaves out the
    first documents (the first 50 are those of `train_full_50`), `without` some hypotheses, by id.
    A hypothesis is asked in one of its `variants` instead of its own words with the chance of
    `variant_share`, or with `variants_each` in its own words and in so many of them besides.
    """
    base = folder / "contract_nli"
    hypotheses = json.loads((base / "hypotheses.json").read_text(encoding="utf-8"))
    worded = _variants(variants)

    def ask(key: str, label: str) -> list[tuple[str, str]]:
        own, others = (hypotheses[key]["hypothesis"], False), worded[key]
        if variants_each:
            asked = [own, *rng.sample(others, min(variants_each, len(others)))]
        else:
            asked = [rng.choice(others) if others and rng.random() < variant_share else own]
        return [(text, _FLIPPED.get(label, label) if no else label) for text, no in asked]

    if split != "train_evidence":
        for doc in read_jsonl(base / f"{split}.jsonl.gz"):
            for key, annotation in doc["annotations"].items():
                if key in without:
                    continue
                for text, label in ask(key, annotation["choice"]):
                    yield {
                        "group": f"contract_nli/{split}/{doc['id']}",
                        "document": doc["text"],
                        "hypothesis": text,
                        "label": label,
                        "evidence": [
                            {"start": s, "end": e}
                            for s, e in (doc["spans"][i] for i in annotation["spans"])
                        ],
                        "quote": " ".join(
                            doc["text"][slice(*doc["spans"][i])] for i in annotation["spans"][:2]
                        ),
                    }
        return
    rows_of: dict[int, list[Record]] = defaultdict(list)
    for row in read_jsonl(base / "train_evidence.jsonl.gz"):
        if row["doc"] >= skip:
            rows_of[row["doc"]].append(row)
    for number, rows in rows_of.items():
        pieces = {
            piece.strip()
            for row in rows
            for source in (row["evidence"], row["random_spans"])
            for piece in source.split("\n")
            if piece.strip()
        }
        order = sorted(pieces)
        rng.shuffle(order)
        text, places = _join(order)
        for row in rows:
            if row["hypothesis_id"] in without:
                continue
            found = [places[p.strip()] for p in row["evidence"].split("\n") if p.strip()]
            for hypothesis, label in ask(row["hypothesis_id"], row["label"]):
                yield {
                    "group": f"contract_nli/train/{number}",
                    "document": text,
                    "hypothesis": hypothesis,
                    "label": label,
                    "evidence": found,
                }


def _join(pieces: list[str]) -> tuple[str, dict[str, dict[str, int]]]:
    places: dict[str, dict[str, int]] = {}
    at = 0
    for piece in pieces:
        places[piece] = {"start": at, "end": at + len(piece)}
        at += len(piece) + 2
    return "\n\n".join(pieces), places


def _tosdr_rows(folder: Path) -> Iterator[Record]:
    for row in read_jsonl(folder / "tosdr" / "clauses.jsonl.gz"):
        quote = " ".join(re.sub(r"<[^>]*>", " ", row["quote"]).split())
        if len(quote) >= 20 and row["case"]:
            yield {
                "group": f"tosdr/{(row['services'] or ['?'])[0]}",
                "quote": quote,
                "statement": row["case"].strip(),
                "rating": row["rating"],
            }


def _tosdr(folder: Path, rng: random.Random, *, topics: str | None = None) -> Iterator[Record]:
    """Clauses with a statement each, and with its topic if any are given.

    `topics` names them by the start of the statement's SHA-256: `{"statement", "topic"}` rows.
    """
    if topics is None:
        yield from _tosdr_rows(folder)
        return
    named = {row["statement"]: row["topic"] for row in read_jsonl(Path(topics))}
    for record in _tosdr_rows(folder):
        digest = hashlib.sha256(record["statement"].encode()).hexdigest()[:12]
        if digest not in named:
            raise InputError(f"no topic for the statement {record['statement']!r}", where=topics)
        yield record | {"topic": named[digest]}


def _tosdr_pages(
    folder: Path,
    rng: random.Random,
    *,
    clauses: int = 12,
    absent: int = 6,
    variants: str | None = None,
) -> Iterator[Record]:
    """Pages of quotes, each asked for its statement, and for statements of quotes not on it.

    `variants` gives negated wordings of statements, so that a page can contradict one.
    """
    worded = _variants(variants)
    rows = list(_tosdr_rows(folder))
    by_service: dict[str, list[Record]] = defaultdict(list)
    for row in rows:
        by_service[row["group"]].append(row)
    statements = sorted({row["statement"] for row in rows})
    services = sorted(by_service)
    rng.shuffle(services)
    ordered = [row for service in services for row in by_service[service]]
    for at in range(0, len(ordered) - clauses + 1, clauses):
        page = {row["quote"]: row for row in ordered[at : at + clauses]}
        quotes = list(page)
        rng.shuffle(quotes)
        text, places = _join(quotes)
        group = f"tosdr/page/{hashlib.sha256(text.encode()).hexdigest()[:12]}"
        said = defaultdict(list)
        for quote in quotes:
            said[page[quote]["statement"]].append(places[quote])
        asked: list[tuple[str, str, list[dict[str, int]]]] = []
        for statement, where in said.items():
            negations = [t for t, negated in worded[statement] if negated]
            if negations and rng.random() < 0.6:
                asked.append((rng.choice(negations), "Contradiction", where))
            else:
                asked.append((statement, "Entailment", where))
        others = [s for s in statements if s not in said]
        asked += [(s, "NotMentioned", []) for s in rng.sample(others, absent)]
        rng.shuffle(asked)
        for statement, label, where in asked:
            yield {
                "group": group,
                "document": text,
                "hypothesis": statement,
                "label": label,
                "evidence": where,
            }


def _tldrlegal(folder: Path, rng: random.Random) -> Iterator[Record]:
    for row in read_jsonl(folder / "plain_english" / "tldrlegal.jsonl.gz"):
        if len(row["summary"]) >= 12:
            yield {
                "group": f"tldrlegal/{row['doc']}",
                "original": row["original"],
                "summary": row["summary"],
            }


_LOADERS: dict[str, Callable[..., Iterator[Record]]] = {
    "contract_nli": _contract_nli,
    "cuad": cuad,
    "cuad_clauses": cuad_clauses,
    "cuad_rules": cuad_rules,
    "cuad_restated": cuad_restated,
    "cuad_sentences": cuad_sentences,
    "tosdr": _tosdr,
    "tosdr_pages": _tosdr_pages,
    "tldrlegal": _tldrlegal,
}
_MIXING = frozenset({"cuad_rules", "cuad_sentences"})
"""Those that put one group's words into another's records."""
