"""Runs every benchmark and rewrites the README's measured table from what they printed.

What the methods measured is kept for `agentkit advise` too.

`--from DIR` takes the JSON files of an earlier run instead of running the benchmarks again; what
has no file there stands as it was.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from agentkit.advise.measured import METHODS

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = {
    "main_job": "main_job.py",
    "contract_review": "contract_review.py",
    "skills_review": "skills.py --skill compliance-review",
    "skills_words": "skills.py --words --without-frozen",
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
    "training_bits": "training_bits.py",
    "methods": "methods.py --minutes 5",
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
ABOUT = {
    "main_job": "The whole of `make run`",
    "contract_review": "A contract, already read and indexed, is parsed, reviewed and explained; "
    "the peer is a plain LangGraph and PEFT pipeline with the same adapters and prompts. One "
    "round: the ratio wavers by a tenth and more from run to run",
    "skills_review": "compliance-review on documents that it was not trained on; frozen is the "
    "bare backbone with the same head, prior each hypothesis's most frequent label",
    "skills_words": "The same hypotheses in words that no training has, stated and negated, of 20 "
    "documents; prior as above",
    "skills_parsing": "contract-parsing on contracts of filers that it was not trained on, in "
    "windows; its calibration error takes half of a span for right, the AUPR does not",
    "skills_reporting": "reporting on what it was not trained on; tf-idf is the nearest "
    "statement for ROUGE-L, seven neighbours for the rating. tldrlegal: 50 rows of 6 documents. "
    "Statements on contracts' clauses, sentences and rules are made by rules of ours, in training "
    "too: agreement with these. The grammar sees to it that what is stated is supported",
    "unseen_contracts": "Rules that no training asked, of commercial contracts that no version was "
    "asked a rule of before, stated and negated. Verdicts follow from CUAD's labels: a contract "
    "with a clause of a category entails each of its rules. The prior knows each category's usual "
    "verdict in each form; frozen is the bare backbone with such a head; foreign is what no "
    "contract speaks of; score over accuracy is how much surer it is than right",
    "unseen_rules": "Hypotheses left out of a training, as stated, paraphrased and negated; the "
    "prior knows each one's usual verdict in each form",
    "own_skill": "A skill of one's own, from 500 rows to a route; the 100 rows to measure on have "
    "15 wordings, and the interval takes them for independent; base is the bare backbone under the "
    "head that was trained with the adapter, frozen with a head of its own",
    "routing": "The router on CLINC150's validation rows with abstention (oos: what no skill is "
    "for; 100 rows), a peer beside; tasks are requests of ours",
    "retrieval": "Gold passages found for ContractNLI's hypotheses, which the reranker was tuned "
    "on, and for CUAD's categories (20 contracts)",
    "retrieval_effect": "What better passages do to the verdict",
    "index": "The index at 1,000 to 100,000 chunks of synthetic texts and vectors, without the "
    "encoder's pass",
    "training": "Training with and without the lower layers' states cached, and what saves memory",
    "training_bits": "A large backbone of random weights, its frozen layers in fewer bits; a peak "
    "counts the mapped pages of the weights' files, too",
    "methods": "Methods and layers side by side on compliance-review, documents held out, as "
    "served; a cost of 1 is the frozen backbone's on a new document. Each began with the frozen "
    "backbone's head and has one, which comes on top of its parameters, bytes and seconds",
    "staged": "A small training (200 rows) from nothing, and from a general adapter trained first",
    "switching": "Switching adapters: setting the active slot, beside PEFT's set_adapter, and what "
    "a switch adds to the first token",
    "loading": "Loading skills, the last beside the first",
    "decoding": "Reading and writing tokens; default is `dtype: auto`, llama.cpp has 4-bit "
    "weights, the others float32",
    "precision": "What the default's precision changes in the answers",
    "mixed_batch": "Rows of eight skills decoded together, beside PEFT",
    "shared_prefix": "Many questions on one document, on one reading of it",
    "concurrency": "Requests of eight skills at once, beside PEFT and vLLM on the CPU",
}
"""What each says, above its table."""
SHORT = (
    (
        "verdicts on known rules, accuracy (goal .86)",
        "skills_review",
        "ContractNLI dev, adapter, accuracy",
    ),
    (
        "the same by the frozen backbone with such a head",
        "skills_review",
        "ContractNLI dev, frozen, accuracy",
    ),
    (
        "the same rules in words never trained on",
        "skills_words",
        "ContractNLI dev in new words, adapter, accuracy",
    ),
    (
        "the same rules negated in words never trained on",
        "skills_words",
        "ContractNLI dev in new words negated, adapter, accuracy",
    ),
    ("verdicts on rules never asked, other contracts", "unseen_contracts", "CUAD, accuracy"),
    (
        "the same by the frozen backbone with such a head",
        "unseen_contracts",
        "CUAD, frozen, accuracy",
    ),
    (
        "the same by one verdict for all, unread",
        "unseen_contracts",
        "CUAD, one verdict for all, accuracy",
    ),
    (
        "the same by each category's usual verdict, unread",
        "unseen_contracts",
        "CUAD, prior, accuracy",
    ),
    ("such rules negated: pairs turned (goal .8)", "unseen_contracts", "CUAD, pairs turned"),
    ("calibration error on them (goal .05)", "unseen_contracts", "CUAD, ece"),
    (
        "clauses and facts, AUPR (goal .482)",
        "skills_parsing",
        "CUAD held out, adapter, aupr",
    ),
    ("plain statements, ROUGE-L", "skills_reporting", "ToS;DR held out, adapter, rouge l"),
    ("the same by the nearest neighbour", "skills_reporting", "ToS;DR held out, tf-idf, rouge l"),
    (
        "routes right, of 150 intents, abstention on",
        "routing",
        "in scope accuracy with abstention",
    ),
    ("requests for no skill that are held back", "routing", "oos recall"),
    ("a contract of 34,000 characters, once indexed", "contract_review", "median seconds"),
    ("times faster than the peer, one round", "contract_review", "median times faster"),
    ("a skill of one's own, 500 rows to a route", "own_skill", "from rows to a routed skill"),
    ("what a switch adds to the first token", "switching", "first token added"),
)
"""What stands first: in words, by the benchmark and the end of the figure's name."""
WHOLE = (
    "main_job",
    "own_skill",
    "contract_review",
    "retrieval_effect",
    "staged",
    "training",
    "training_bits",
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
    r", (?:(?:score over )?accuracy(?: over the prior| over one verdict.*| where .*)?"
    r"|documents|questions|pairs turned|ece)$"
)
"""Figures of rules that are shown whether they have a target or not."""
TUNING = "What each shipped skill had at the end of its training, on the tuning rows"
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
    if (methods := folder / "methods.json").is_file():
        shutil.copyfile(methods, METHODS)
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    head, _, rest = text.partition(OPEN)
    before, _, tail = rest.partition(CLOSE)
    tables = benchmark_rows(folder, before)
    table = "\n".join([*short_rows(tables), "", *folded(TUNING, skill_rows()), "", *tables])
    readme.write_text(f"{head}{OPEN}\n\n{table}\n\n{CLOSE}{tail}", encoding="utf-8")
    return code


def short_rows(tables: list[str]) -> list[str]:
    """The figures to see first, out of the tables."""
    found: dict[tuple[str, str], str] = {}
    command = ""
    for row in tables:
        if shown := re.match(r"`python benchmarks/([^`]*)`", row):
            command = shown[1]
        elif cells := re.match(r"\| ([^|]*) \| ([^|]*) \|", row):
            found[command, cells[1]] = cells[2].strip()
    rows = ["| what | figure | printed by `python benchmarks/` |", "|---|---|---|"]
    for said, name, figure in SHORT:
        line = BENCHMARKS[name]
        values = [v for (by, of), v in found.items() if by == line and of.endswith(figure)]
        rows += [f"| {said} | {values[0]} | `{line}` |"] if values else []
    return rows


def folded(title: str, rows: list[str]) -> list[str]:
    """Rows that open at a click."""
    return [f"<details><summary>{title}</summary>", "", *rows, "", "</details>"]


def skill_rows() -> list[str]:
    """What each shipped skill measured on its tuning rows (documents kept out of training)."""
    rows = [
        "`agentkit skills show NAME`; untrained is the bare backbone with a head that has learnt",
        "nothing, or with its probe; frozen has a head of its own, trained on the same rows, where",
        "`benchmarks/frozen` keeps one. reporting's accuracy is of the topic, which a probe of the",
        "frozen backbone chooses: its adapter writes (loss).",
        "",
        "| skill | figure | untrained | trained | frozen |",
        "|---|---|---|---|---|",
    ]
    for path in sorted((ROOT / "skills").glob("*/metrics.json")):
        tuning = json.loads(path.read_text(encoding="utf-8"))["tuning"]
        kept = ROOT / "benchmarks" / "frozen" / path.parent.name / path.name
        frozen = json.loads(kept.read_text("utf-8"))["tuning"]["trained"] if kept.exists() else {}
        for figure, value in tuning["trained"].items():
            if isinstance(value, float):
                cells = (tuning["untrained"].get(figure, ""), value, frozen.get(figure, ""))
                said = " | ".join(map(str, cells))
                rows.append(f"| {path.parent.name} | {figure.replace('_', ' ')} | {said} |")
    return rows


def benchmark_rows(folder: Path, before: str = "") -> list[str]:
    """The tables of a folder's files, in order; of those without a file, what stood `before`."""
    stood = re.split(r"^(?=`python benchmarks/)", before.strip(), flags=re.MULTILINE)
    rows: list[str] = []
    for name, line in BENCHMARKS.items():
        path = folder / f"{name}.json"
        if not path.is_file():
            kept = [part for part in stood if part.startswith(f"`python benchmarks/{line}`")]
            for part in kept:
                table = part.partition("</details>")[0].strip()
                rows += [*folded(html(ABOUT[name]), table.splitlines()), ""]
            continue
        result = json.loads(path.read_text(encoding="utf-8"))
        machine = result["machine"]
        commit = f", commit {result['commit']}" if result.get("commit") else ""
        cores = f"{machine['cores']} cores of {machine['processor']}"
        heading = f"`python benchmarks/{line}`, {cores}{commit}:"
        if name == "methods":
            own = [heading, "", *methods_rows(result["metrics"])]
            rows += [*folded(html(ABOUT[name]), own), ""]
            continue
        own = [heading, "", "| figure | value | target |", "|---|---|---|"]
        ends = {metric["name"]: metric["value"] for metric in result["metrics"]}
        for metric in result["metrics"]:
            if not shown(name, metric):
                continue
            value = "" if metric["value"] is None else f"{metric['value']:.4g} {metric['unit']}"
            low, high = (
                ends.get(f"{metric['name']}, {end}", ends.get(f"{metric['name']}.{end}"))
                for end in ("low", "high")
            )
            if low is not None and high is not None:
                value += f" [{low:.3g}, {high:.3g}]"
            target = metric["target"] or ""
            if metric["met"] is False:
                target += " (missed)"
            own.append(
                f"| {metric['name'].replace('_', ' ')} | {' '.join(value.split())} | {target} |"
            )
        rows += [*folded(html(ABOUT[name]), own), ""]
    return rows[:-1]


def html(text: str) -> str:
    """A line for a summary, which is HTML and no Markdown."""
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", text)


def shown(name: str, metric: dict[str, Any]) -> bool:
    """Whether the README shows a figure of a benchmark in a row of its own."""
    if metric["name"].endswith((", low", ", high", ".low", ".high")):
        return False
    if metric["name"].endswith(", failed") and not metric["value"]:
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
    from methods import PICTURE, by_variant, draw, table

    draw(PICTURE, by_variant(metrics))
    about = {metric["name"]: metric["value"] for metric in metrics if "," not in metric["name"]}
    said = ", ".join(f"{value:,g} {name}" for name, value in about.items())
    return [*table(metrics), "", f"({said})"]


if __name__ == "__main__":
    sys.exit(main())
