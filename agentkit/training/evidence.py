"""Tunes the reranker on questions with known evidence, and says what it gives.

Records come from `load_dataset`: a document, a statement about it, and the places that bear it out
or deny it. Statements that nothing in a document speaks to are no groups: there is nothing to find.
"""

from __future__ import annotations

import hashlib
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from agentkit.errors import InputError
from agentkit.retrieval.chunking import span_chunks
from agentkit.retrieval.document_index import DocumentIndex
from agentkit.retrieval.loaders import document_from_text
from agentkit.retrieval.rerank_head import FEATURES, Head, features
from agentkit.retrieval.tuning import Floats, Group, Tuning, fit
from agentkit.training.datasets import dataset_files, load_dataset
from agentkit.training.jsonl import Record
from agentkit.types import Encoder, Json

_ORDERLESS = [FEATURES.index(name) for name in ("cosine", "bm25", "bm25_headed", "log_length")]
_FIRST_WHOLE = 50
_PAGE = 60
_AT = (5, 10)
_FOLDS = 4


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """A group with the names by which it is left out: of its document and of its question."""

    group: Group
    document: str
    question: str


def evidence_groups(
    records: Sequence[Record], encoder: Encoder, *, whole: bool, questions: Sequence[str] = ()
) -> Iterator[Asked]:
    """A group for each record that has evidence; its passages are the product's own spans.

    `whole` says that the documents stand as they were written: otherwise their spans were put
    together, and have neither neighbours nor headings. `questions` names each record's question
    (its own words by default), so that wordings of one question are left out together.
    """
    named = questions or [record["hypothesis"] for record in records]
    by_document: dict[str, list[tuple[Record, str]]] = defaultdict(list)
    for record, question in zip(records, named, strict=True):
        if record["evidence"]:
            by_document[record["document"]].append((record, question))
    for text, asked in by_document.items():
        document = document_from_text(text)
        chunks = span_chunks(document)
        if not whole:
            chunks = tuple(replace(chunk, heading=()) for chunk in chunks)
        index = DocumentIndex(document, encoder, chunks=chunks)
        for record, question in asked:
            relevant = np.array(
                [
                    any(c.start < e["end"] and e["start"] < c.end for e in record["evidence"])
                    for c in chunks
                ],
                dtype=np.bool_,
            )
            if not relevant.any() or relevant.all():
                continue
            candidates = index.candidates(record["hypothesis"])
            known: Floats = features(candidates)
            if not whole:
                orderless = np.zeros_like(known)
                orderless[:, _ORDERLESS] = known[:, _ORDERLESS]
                known = orderless
            group = Group(candidates.query, candidates.vectors, known, relevant, whole)
            yield Asked(group, record["group"], question)


def load_groups(
    folder: Path, encoder: Encoder, *, wordings: Path | None = None, seed: int = 7
) -> list[Asked]:
    """Groups of ContractNLI's training split and of ToS;DR.

    `wordings` is a JSONL file of other words for ContractNLI's hypotheses, as `load_dataset` takes
    it. Raises InputError where a data set is not there.
    """
    groups: list[Asked] = []
    for split, skip in (("train_full_50", 0), ("train_evidence", _FIRST_WHOLE)):
        options: dict[str, Any] = {"split": split, "skip": skip}
        plain = load_dataset("contract_nli", folder, seed=seed, **options)
        names = [record["hypothesis"] for record in plain]
        whole = split != "train_evidence"
        groups += evidence_groups(plain, encoder, whole=whole)
        if wordings is not None:
            # Records come in the same order, so the plain ones name the questions.
            other = load_dataset(
                "contract_nli",
                folder,
                seed=seed,
                **options,
                variants=str(wordings.resolve()),
                variant_share=1.0,
            )
            groups += evidence_groups(other, encoder, whole=whole, questions=names)
    pages = load_dataset("tosdr_pages", folder, seed=seed, clauses=_PAGE, absent=0)
    groups += evidence_groups(pages, encoder, whole=False)
    return groups


def tune(
    folder: Path,
    encoder: Encoder,
    *,
    wordings: Path | None = None,
    tuning: Tuning | None = None,
) -> tuple[Head, dict[str, Json]]:
    """The head fitted to all of it, and its metrics: where it comes from and what it gives.

    Raises InputError where a data set is not there or has no evidence.
    """
    tuning = tuning or Tuning()
    asked = load_groups(folder, encoder, wordings=wordings, seed=tuning.seed)
    if not any(one.group.whole for one in asked):
        raise InputError("no evidence in whole documents to tune on", where=str(folder))
    head = fit([one.group for one in asked], encoder.digest, tuning)
    files = [file for name in ("contract_nli", "tosdr") for file in dataset_files(name, folder)]
    if wordings is not None:
        files.append(wordings)
    metrics: dict[str, Json] = {
        "encoder": encoder.digest,
        "seed": tuning.seed,
        "groups": len(asked),
        "features": dict(zip(FEATURES, [round(float(w), 3) for w in head.weights], strict=True)),
        "tuning": {
            "rank": tuning.rank,
            "epochs": tuning.epochs,
            "rate": tuning.rate,
            "decay": tuning.decay,
            "trust": tuning.trust,
        },
        "recall_of_evidence_spans": cross_validate(asked, encoder.digest, tuning),
        "data": {
            file.name: hashlib.sha256(file.read_bytes()).hexdigest()
            for file in sorted(files)
            if file.name not in {"dev.jsonl.gz"}
        },
    }
    return head, metrics


def cross_validate(
    asked: Sequence[Asked], encoder: str, tuning: Tuning
) -> dict[str, dict[str, float]]:
    """Share of the spans with evidence found at 5 and 10, on whole documents left out.

    `known_questions` were tuned on with other documents; `new_questions` were left out too, in all
    their wordings, a fourth at a time.
    """
    whole = sorted({one.document for one in asked if one.group.whole})
    held = set(whole[1::2])
    # A question of other documents stays in: it is one of many that are always known.
    questions = sorted({one.question for one in asked if one.group.whole})
    random.Random(tuning.seed).shuffle(questions)
    rest = [one for one in asked if one.document not in held]
    known = fit([one.group for one in rest], encoder, tuning)
    without = Head(known.weights, known.left * 0, known.right, known.bias * 0, encoder)
    result = {
        "known_questions": _recall([o for o in asked if o.document in held], known),
        "features_alone": _recall([o for o in asked if o.document in held], without),
    }
    parts = []
    for fold in range(_FOLDS):
        out = set(questions[fold::_FOLDS])
        head = fit([one.group for one in rest if one.question not in out], encoder, tuning)
        parts.append(([one for one in asked if one.document in held and one.question in out], head))
    result["new_questions"] = _mean([(_recall(ones, head), _spans(ones)) for ones, head in parts])
    return result


def _recall(asked: Sequence[Asked], head: Head) -> dict[str, float]:
    found = dict.fromkeys(_AT, 0)
    for one in asked:
        group = one.group
        order = np.argsort(-_scores(group, head), kind="stable")
        for at in _AT:
            found[at] += int(group.relevant[order[:at]].sum())
    return {f"at_{at}": round(found[at] / max(_spans(asked), 1), 4) for at in _AT}


def _scores(group: Group, head: Head) -> Floats:
    return np.asarray(group.features @ head.weights + head.learnt(group.query, group.vectors))


def _spans(asked: Sequence[Asked]) -> int:
    return sum(int(one.group.relevant.sum()) for one in asked)


def _mean(parts: Sequence[tuple[dict[str, float], int]]) -> dict[str, float]:
    total = sum(count for _, count in parts) or 1
    return {
        f"at_{at}": round(sum(recall[f"at_{at}"] * count for recall, count in parts) / total, 4)
        for at in _AT
    }
