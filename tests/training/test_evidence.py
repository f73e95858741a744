"""Tuning the reranker: from data sets to groups, to a head and its figures, by one command."""

import gzip
import hashlib
import json
import re

import numpy as np
import pytest

from agentkit.cli.app import run
from agentkit.errors import InputError
from agentkit.retrieval.rerank_head import FEATURES
from agentkit.retrieval.tuning import Tuning
from agentkit.training.evidence import evidence_groups, load_groups, tune

HYPOTHESES = {
    "h-1": "The recipient keeps the information secret.",
    "h-2": "The recipient may copy the information.",
    "h-3": "The agreement is under the law of Kenya.",
    "h-4": "The recipient returns the information.",
}
CLAUSES = {
    "h-1": "The receiver shall not tell anyone of the data.",
    "h-2": "Duplicates of the data may be made.",
    "h-3": "Kenyan statutes apply to this contract.",
    "h-4": "All data goes back to its owner at the end.",
}
FILLER = ["Notices are in writing.", "Headings do not matter.", "Each party pays its own costs."]


class Words:
    """Bags of hashed words, the same on every machine."""

    dimension = 32
    digest = "f" * 64

    def encode(self, texts):
        vectors = np.full((len(texts), 32), 1e-3, dtype=np.float32)
        for row, text in enumerate(texts):
            for word in re.findall(r"\w+", text.lower()):
                vectors[row, int(hashlib.md5(word.encode()).hexdigest(), 16) % 32] += 1.0
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A few documents in the forms of ContractNLI and ToS;DR, in words of our own."""
    base = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(4)
    documents, rows = [], []
    for number in range(8):
        keys = list(random.permutation(list(CLAUSES)))
        absent = keys.pop()
        parts = [*(CLAUSES[key] for key in keys), *FILLER]
        order = random.permutation(len(parts))
        text, spans = "", {}
        for at, part in enumerate(order):
            start = len(text)
            text += f"{parts[part]}\n\n"
            spans[int(part)] = (at, [start, start + len(parts[part])])
        places = [place for _, place in sorted(spans.values())]
        annotations = {
            key: {"choice": "Entailment", "spans": [spans[i][0]]} for i, key in enumerate(keys)
        }
        annotations[absent] = {"choice": "NotMentioned", "spans": []}
        documents.append(
            {"id": str(number), "text": text, "spans": places, "annotations": annotations}
        )
        for key in CLAUSES:
            rows.append(
                {
                    "doc": 50 + number,
                    "hypothesis_id": key,
                    "label": "NotMentioned" if key == absent else "Entailment",
                    "evidence": "" if key == absent else CLAUSES[key],
                    "random_spans": FILLER[0] if key == absent else "",
                }
            )
    nli = base / "contract_nli"
    write(nli / "train_full_50.jsonl.gz", documents)
    write(nli / "dev.jsonl.gz", documents[:1])
    write(nli / "train_evidence.jsonl.gz", rows)
    entries = {key: {"hypothesis": text} for key, text in HYPOTHESES.items()}
    (nli / "hypotheses.json").write_text(json.dumps(entries))
    write(
        base / "tosdr" / "clauses.jsonl.gz",
        [
            {
                "quote": f"You agree to point number {n} of these terms of service.",
                "case": f"There is a point {n % 9}",
                "rating": "neutral",
                "services": [f"s{n % 4}"],
            }
            for n in range(70)
        ],
    )
    return base


def test_a_statement_that_nothing_speaks_to_makes_no_group(folder):
    text = "Pay at once.\n\nKeep it secret."
    records = [
        {"document": text, "hypothesis": "Secret?", "group": "d", "evidence": [evidence]}
        for evidence in ({"start": 14, "end": 29},)
    ]
    records.append({**records[0], "hypothesis": "Copies?", "evidence": []})
    (one,) = evidence_groups(records, Words(), whole=True)
    assert one.group.relevant.tolist() == [False, True]
    assert (one.document, one.question) == ("d", "Secret?")


def test_passages_without_an_order_have_no_neighbours_and_no_place(folder):
    groups = [one.group for one in load_groups(folder, Words())]
    loose = [group for group in groups if not group.whole]
    assert loose
    assert len(loose) < len(groups)
    for name in ("cosine_before", "bm25_after", "section_best", "place", "last_part"):
        assert not any(group.features[:, FEATURES.index(name)].any() for group in loose)


def test_the_figures_leave_documents_and_questions_out(folder):
    head, metrics = tune(folder, Words(), tuning=Tuning(rank=8, epochs=4))
    figures = metrics["recall_of_evidence_spans"]
    assert set(figures) == {"known_questions", "features_alone", "new_questions"}
    assert all(0.0 <= share <= 1.0 for part in figures.values() for share in part.values())
    assert head.encoder == metrics["encoder"] == "f" * 64
    assert "dev.jsonl.gz" not in metrics["data"]
    for name, digest in metrics["data"].items():
        (file,) = folder.rglob(name)
        assert digest == hashlib.sha256(file.read_bytes()).hexdigest()


def test_other_wordings_are_left_out_with_their_question(folder, tmp_path):
    wordings = tmp_path / "wordings.jsonl"
    rows = [{"hypothesis": "h-1", "text": "Secrecy is owed.", "negated": False}]
    wordings.write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = load_groups(folder, Words(), wordings=wordings)
    assert {one.question for one in asked if one.group.whole} == set(HYPOTHESES.values())
    queries = {one.group.query.tobytes() for one in asked if one.question == HYPOTHESES["h-1"]}
    assert len(queries) == 2


def test_a_missing_data_set_is_named(tmp_path):
    with pytest.raises(InputError, match="contract_nli"):
        tune(tmp_path, Words())


def test_the_command_refuses_what_it_cannot_write_or_read(tmp_path, capsys):
    assert run(["tune-reranker", str(tmp_path / "head.bin"), "--data-dir", str(tmp_path)]) == 2
    assert ".safetensors" in capsys.readouterr().err
    out = str(tmp_path / "head.safetensors")
    missing = ["--wordings", str(tmp_path / "none.jsonl")]
    assert run(["tune-reranker", out, "--data-dir", str(tmp_path), *missing]) == 2
    assert "none.jsonl" in capsys.readouterr().err
