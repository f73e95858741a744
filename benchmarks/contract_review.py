"""The main job beside a plain LangGraph and PEFT pipeline: a short, a median and a long contract.

Both sides are given the same document, read and indexed, and the same 17 rules, run in the same
process with the same threads and type, and are warmed up on another document. Printed are the
ratio of the medians, and whether the verdicts are the same. In bfloat16 two verdicts may be a
rounding apart; where the one that was given has a probability of 0.6 or more, they must not
differ.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from common import Metric, arguments, at_least, finish, need
from peers.contract_pipeline import Pipeline
from rich.console import Console

from agentkit import models
from agentkit.kit import Kit
from agentkit.threads import in_own_thread
from agentkit.training.jsonl import read_jsonl
from agentkit.workflow.run import start
from agentkit.workflow.spec import load_spec

ROOT = Path(__file__).resolve().parent.parent
SKILLS = {"parse": "contract-parsing", "review": "compliance-review", "explain": "reporting"}
EXPLAINED = 20
SURE = 0.6
SETTLE = 1.0
"""Seconds after which an engine without work has given its threads back."""
Value = TypeVar("Value")


def main() -> int:
    parser = arguments(__doc__ or "")
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    need(options.data_dir)
    console = Console(stderr=True)
    hypotheses = json.loads((options.data_dir / "contract_nli/hypotheses.json").read_text("utf-8"))
    rules = [entry["hypothesis"] for entry in hypotheses.values()]
    contracts = sorted(
        (row["text"] for row in read_jsonl(options.data_dir / "cuad/contracts.jsonl.gz")), key=len
    )
    chosen = {
        "short": contracts[len(contracts) // 10],
        "median": contracts[len(contracts) // 2],
        "long": contracts[len(contracts) * 9 // 10],
    }
    metrics: list[Metric] = []
    with tempfile.TemporaryDirectory() as scratch, Kit() as kit:
        folder = Path(scratch)
        playbook = folder / "playbook.md"
        playbook.write_text("".join(f"- {rule}\n" for rule in rules), encoding="utf-8")
        compiled = kit.compile(load_spec(ROOT / "workflows" / "contract_review.yaml"))
        settings = kit.settings
        dtype = kit.engine.backbone.dtype
        peer = in_own_thread(
            lambda: Pipeline(
                models.resolve(settings.backbone, settings, "backbone"),
                {step: ROOT / "skills" / name for step, name in SKILLS.items()},
                kit.retriever,
                dtype=dtype,
                window=settings.document_window,
                explained=EXPLAINED,
            )
        )
        same = total = beyond = 0
        for name, text in {"warm-up": contracts[0], **chosen}.items():
            path = folder / f"{name}.txt"
            path.write_text(text, encoding="utf-8", newline="")
            document = kit.read(path)
            # Both search the same vectors; who came first would compute them for the other.
            kit.retriever.document_index(document).search(rules[0], top_k=1)
            ours, theirs = [], []
            inputs = {"document": str(path), "playbook": str(playbook)}
            for _ in range(options.rounds):
                seconds, outcome = alone(partial(start, compiled, inputs, store=kit.runs))
                ours.append(seconds)
                seconds, state = alone(partial(peer.run, document, rules))
                theirs.append(seconds)
            if name == "warm-up":
                continue
            said = {review["rule"]: review for review in outcome.outputs["reviews"]}
            for review in state["reviews"]:
                own = said[review["rule"]]
                equal = own["verdict"] == review["verdict"]
                same += equal
                total += 1
                beyond += not equal and max(own["score"], review["score"]) >= SURE
            mine, other = statistics.median(ours), statistics.median(theirs)
            console.print(f"{name}: {len(text):,} characters, {mine:.1f} s beside {other:.1f} s")
            metrics += [
                Metric(f"{name}_characters", len(text)),
                Metric(f"{name}_seconds", mine, "s"),
                Metric(f"{name}_peer_seconds", other, "s"),
            ]
            if name == "median":
                metrics.append(at_least(f"{name}_times_faster", other / mine, 2.0))
            else:
                metrics.append(Metric(f"{name}_times_faster", other / mine))
    metrics += [
        Metric("share_of_equal_verdicts", same / total),
        Metric("differing_sure_verdicts", beyond, "", "0", beyond == 0),
    ]
    return finish("contract_review", metrics, options.json)


def alone(work: Callable[[], Value]) -> tuple[float, Value]:
    """The seconds that work takes, and what it gives, with no native threads but its own."""

    def timed() -> tuple[float, Value]:
        began = time.perf_counter()
        found = work()
        return time.perf_counter() - began, found

    time.sleep(SETTLE)
    return in_own_thread(timed)


if __name__ == "__main__":
    sys.exit(main())
