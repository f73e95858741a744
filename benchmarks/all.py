"""Runs every benchmark and rewrites the README's measured table from what they printed.

`--from DIR` takes the JSON files of an earlier run instead of running the benchmarks again; what
has no file there stands as it was.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = {
    "main_job": "main_job.py",
    "contract_review": "contract_review.py",
    "skills_review": "skills.py --skill compliance-review",
    "skills_parsing": "skills.py --skill contract-parsing",
    "skills_reporting": "skills.py --skill reporting",
    "unseen_contracts": "unseen_rules.py",
    "unseen_rules": "unseen_rules.py --folds 3 --minutes 25 --limit 80",
    "own_skill": "own_skill.py",
    "routing": "routing.py",
    "retrieval": "retrieval.py",
    "retrieval_effect": "retrieval.py --effect 5",
    "index": "index.py",
    "training": "training.py",
    "methods": "methods.py --minutes 6",
    "staged": "staged.py",
    "switching": "switching.py",
    "loading": "loading.py",
    "decoding": "decoding.py",
    "precision": "precision.py",
    "mixed_batch": "mixed_batch.py",
    "shared_prefix": "shared_prefix.py",
    "concurrency": "concurrency.py",
}
"""What is run for each file of metrics."""
WHOLE = (
    "main_job",
    "own_skill",
    "contract_review",
    "retrieval_effect",
    "staged",
    "training",
    "decoding",
    "concurrency",
)
"""Of the others the README shows what has a target; `--json` has all of it."""
BESIDE = (
    *("accuracy", "macro_f1", "evidence_f1", "evidence_recall", "evidence_map"),
    *("accuracy.topic", "accuracy.rating", "macro_f1.rating", "aupr", "rouge_l"),
)
"""Figures of skills that are shown for the adapter and for what it is compared with."""
BY_RULE = re.compile(
    r", (?:(?:score over )?accuracy(?: over the prior| where .*)?|pairs turned|ece)$"
)
"""Figures of rules that are shown whether they have a target or not."""
OPEN, CLOSE = "<!-- measured: make bench -->", "<!-- /measured -->"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--from", dest="source", type=Path, help="folder of JSON files")
    options = parser.parse_args()
    folder = options.source or ROOT / "out" / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    code = 0
    if options.source is None:
        for name, line in BENCHMARKS.items():
            script, *given = line.split()
            command = [sys.executable, str(ROOT / "benchmarks" / script), *given]
            done = subprocess.run([*command, "--json", str(folder / f"{name}.json")], check=False)
            code = max(code, done.returncode)
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    head, _, rest = text.partition(OPEN)
    before, _, tail = rest.partition(CLOSE)
    table = "\n".join([*skill_rows(), "", *benchmark_rows(folder, before)])
    readme.write_text(f"{head}{OPEN}\n\n{table}\n\n{CLOSE}{tail}", encoding="utf-8")
    return code


def skill_rows() -> list[str]:
    """What each shipped skill measured on its tuning rows (documents kept out of training)."""
    rows = [
        "On the tuning rows, whole documents kept out of training (`agentkit skills show NAME`);",
        "untrained is the bare backbone with a head that has learnt nothing, or with its probe:",
        "",
        "| skill | figure | untrained | trained |",
        "|---|---|---|---|",
    ]
    for path in sorted((ROOT / "skills").glob("*/metrics.json")):
        tuning = json.loads(path.read_text(encoding="utf-8"))["tuning"]
        for figure, value in tuning["trained"].items():
            if isinstance(value, float):
                before = tuning["untrained"].get(figure, "")
                rows.append(
                    f"| {path.parent.name} | {figure.replace('_', ' ')} | {before} | {value} |"
                )
    return rows


def benchmark_rows(folder: Path, before: str = "") -> list[str]:
    """The tables of a folder's files, in order; of those without a file, what stood `before`."""
    stood = re.split(r"^(?=`python benchmarks/)", before.strip(), flags=re.MULTILINE)
    rows: list[str] = []
    for name, line in BENCHMARKS.items():
        path = folder / f"{name}.json"
        if not path.is_file():
            kept = [part for part in stood if part.startswith(f"`python benchmarks/{line}`")]
            rows += [row for part in kept for row in [*part.strip().splitlines(), ""]]
            continue
        result = json.loads(path.read_text(encoding="utf-8"))
        machine = result["machine"]
        rows += [
            f"`python benchmarks/{line}`, {machine['cores']} cores of {machine['processor']}:",
            "",
        ]
        if name == "methods":
            rows += [*methods_rows(result["metrics"]), ""]
            continue
        rows += [
            "| figure | value | target |",
            "|---|---|---|",
        ]
        ends = {metric["name"]: metric["value"] for metric in result["metrics"]}
        for metric in result["metrics"]:
            if not shown(name, metric):
                continue
            value = "" if metric["value"] is None else f"{metric['value']:.4g} {metric['unit']}"
            low, high = (ends.get(f"{metric['name']}, {end}") for end in ("low", "high"))
            if low is not None and high is not None:
                value += f" [{low:.3g}, {high:.3g}]"
            target = metric["target"] or ""
            if metric["met"] is False:
                target += " (missed)"
            rows.append(
                f"| {metric['name'].replace('_', ' ')} | {' '.join(value.split())} | {target} |"
            )
        rows.append("")
    return rows[:-1]


def shown(name: str, metric: dict[str, Any]) -> bool:
    """Whether the README shows a figure of a benchmark in a row of its own."""
    if metric["name"].endswith((", low", ", high")):
        return False
    if name.startswith("skills"):
        _, _, *rest = metric["name"].split(", ")
        if rest[-1] in BESIDE and len(rest) == 2 and " over " not in rest[0]:
            return True
    if name.startswith("unseen") and BY_RULE.search(metric["name"]):
        return True
    return name in WHOLE or metric["target"] is not None


def methods_rows(metrics: list[dict[str, Any]]) -> list[str]:
    """The methods side by side, and their picture."""
    from methods import table

    about = {metric["name"]: metric["value"] for metric in metrics if "," not in metric["name"]}
    said = ", ".join(f"{value:,g} {name}" for name, value in about.items())
    return [*table(metrics), "", f"({said})", "", "![quality over size](benchmarks/methods.svg)"]


if __name__ == "__main__":
    sys.exit(main())
