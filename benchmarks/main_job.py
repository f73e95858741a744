"""The main job on real documents: does it hold, and how long?

The contracts are of filers that contract-parsing neither trained nor tuned on; reporting did train
on single clauses drawn from all of CUAD, so nothing here measures its statements.

Runs `workflows/contract_review.yaml` over CUAD contracts and ContractNLI dev documents with a
playbook made of ContractNLI's 17 hypotheses, checks every quote against its offsets, and prints the
time per document, where it goes, and how many verdicts are right beside answering each
hypothesis with its most frequent label in the training split.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path

from common import Metric, arguments, at_least, finish, need
from rich.console import Console
from sklearn.metrics import f1_score

from agentkit.kit import Kit
from agentkit.report import build_report, write_report
from agentkit.report.record import run_of
from agentkit.training.jsonl import read_jsonl
from agentkit.training.rows import load_rows
from agentkit.training.spec import load_train_spec
from agentkit.workflow.run import start
from agentkit.workflow.spec import load_spec

ROOT = Path(__file__).resolve().parent.parent
LABELS = {
    "Entailment": "entailed",
    "Contradiction": "contradicted",
    "NotMentioned": "not_mentioned",
}


def main() -> int:
    parser = arguments(__doc__ or "")
    parser.add_argument("--contracts", type=int, default=20)
    parser.add_argument("--documents", type=int, default=10)
    parser.add_argument("--minutes", type=float, default=60.0, help="begin no document later")
    parser.add_argument("--out", type=Path, help="keep the reports here")
    options = parser.parse_args()
    need(options.data_dir)
    console = Console(stderr=True)
    until = time.monotonic() + 60 * options.minutes
    base = options.data_dir / "contract_nli"
    hypotheses = json.loads((base / "hypotheses.json").read_text("utf-8"))
    texts = {key: entry["hypothesis"] for key, entry in hypotheses.items()}
    dev = list(read_jsonl(base / "dev.jsonl.gz"))[: options.documents]
    documents = [(f"nli-{d['id']}", d["text"], d["annotations"]) for d in dev]
    documents += [(f"cuad-{c['id']}", c["text"], None) for c in unseen_contracts(options)]
    prior = most_frequent(base)

    seconds: dict[str, list[float]] = defaultdict(list)
    steps: dict[str, float] = defaultdict(float)
    gold: list[str] = []
    said: list[str] = []
    guessed: list[str] = []
    quotes = failed = 0
    with tempfile.TemporaryDirectory() as scratch, Kit() as kit:
        folder = Path(scratch)
        playbook = folder / "playbook.md"
        playbook.write_text("".join(f"- {text}\n" for text in texts.values()), encoding="utf-8")
        spec = load_spec(ROOT / "workflows" / "contract_review.yaml")
        compiled = kit.compile(spec, folder=ROOT / "workflows")
        for name, text, annotations in documents:
            path = folder / f"{name}.txt"
            path.write_text(text, encoding="utf-8", newline="")
            if time.monotonic() > until:
                break
            began = time.perf_counter()
            outcome = start(
                compiled, {"document": str(path), "playbook": str(playbook)}, store=kit.runs
            )
            record = kit.runs.show(outcome.id)
            document = kit.documents.get(record.inputs["document"]["$document"])
            if outcome.error is not None:
                failed += 1
                console.print(f"{name}: {outcome.error}", markup=False)
                continue
            # Raises unless every quote stands at its offsets and every part has its shape.
            report = build_report(
                outcome.outputs, document, run_of(outcome, record, compiled.program)
            )
            write_report(report, document, (options.out or folder) / name)
            took = time.perf_counter() - began
            kind = "document" if annotations else "contract"
            seconds[kind].append(took)
            for step, value in report.run.seconds.items():
                steps[step] += value
            quotes += len(report.facts) + len(report.clauses)
            quotes += sum(len(review.evidence) for review in report.reviews)
            console.print(
                f"{name}: {len(document.text):,} characters, {took:.0f} s, "
                f"{len(report.clauses)} clauses, {len(report.reviews)} reviews, "
                f"{len(report.findings)} findings"
            )
            if annotations:
                verdicts = {review.rule: review.verdict for review in report.reviews}
                for key, annotation in annotations.items():
                    gold.append(LABELS[annotation["choice"]])
                    said.append(verdicts.get(texts[key], "not_mentioned"))
                    guessed.append(LABELS[prior[key]])
    total = sum(sum(values) for values in seconds.values())
    metrics = [
        Metric("documents_failed", failed, "", "0", failed == 0),
        Metric("quotes_verified", quotes),
    ]
    for kind, values in seconds.items():
        metrics += [
            Metric(f"{kind}s", len(values)),
            Metric(f"seconds_per_{kind}_median", statistics.median(values), "s"),
            Metric(f"seconds_per_{kind}_max", max(values), "s"),
        ]
    metrics += [
        Metric(f"share_of_time_{step}", value / total) for step, value in steps.items() if value
    ]
    if gold:
        right = sum(a == b for a, b in zip(gold, said, strict=True)) / len(gold)
        base_rate = sum(a == b for a, b in zip(gold, guessed, strict=True)) / len(gold)
        metrics += [
            Metric("verdicts", len(gold)),
            at_least("verdict_accuracy", right, base_rate),
            Metric("verdict_macro_f1", float(f1_score(gold, said, average="macro"))),
            Metric("prior_accuracy", base_rate),
            Metric("prior_macro_f1", float(f1_score(gold, guessed, average="macro"))),
        ]
    return finish("main_job", metrics, options.json)


def unseen_contracts(options) -> list[dict]:  # noqa: ANN001
    """CUAD contracts of filers that the shipped skill neither trained nor tuned on."""
    skill = ROOT / "skills" / "contract-parsing"
    split = load_rows(load_train_spec(skill / "train.yaml"), skill=skill, data_dir=options.data_dir)
    seen = {row.input["document"] for row in (*split.train, *split.tuning)}
    filers = {row.group for row in (*split.train, *split.tuning)}
    from agentkit.training.datasets import load_dataset

    groups = {r["document"]: r["group"] for r in load_dataset("cuad", options.data_dir)}
    contracts = read_jsonl(options.data_dir / "cuad" / "contracts.jsonl.gz")
    fresh = [c for c in contracts if c["text"] not in seen and groups[c["text"]] not in filers]
    return fresh[: options.contracts]


def most_frequent(base: Path) -> dict[str, str]:
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for row in read_jsonl(base / "train_evidence.jsonl.gz"):
        counts[row["hypothesis_id"]][row["label"]] += 1
    return {key: counter.most_common(1)[0][0] for key, counter in counts.items()}


if __name__ == "__main__":
    sys.exit(main())
