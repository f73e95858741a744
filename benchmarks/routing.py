"""The controller: right skill, known confidence, and an honest "I don't know".

Every intent of `--train` becomes a skill that is named after it and has its texts as utterances;
`--oos-train`, where given, is what the controller is told that no skill is for. Everything is
fitted on these two; `--test` and `--oos-test` are only routed. By default the rows are CLINC150's
train, val, out-of-scope train and out-of-scope val splits, in the folder `clinc150` of
`--data-dir`; the targets that speak of them are judged on them alone. Rows of `--test` whose intent
has no row in `--train` count as out of scope.

Beside the controller stand, on the same embeddings, a logistic head and centroids, and where it is
installed (or in the Python that `--semantic-router` names) the package semantic-router. Then come
harder splits of the same rows (few of the intents, with few utterances, are skills; all others are
for none, and nobody says so), the shipped skills among distractors (`routing_tasks/`: what was
tuned on is the half so marked), and times on one core.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from common import Metric, arguments, at_least, finish
from numpy.typing import NDArray
from rich.console import Console
from ruamel.yaml import YAML
from sentence_transformers import SentenceTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from threadpoolctl import threadpool_limits

from agentkit.models import resolve
from agentkit.routing.controller import Controller, SkillText
from agentkit.routing.encoder import SentenceEncoder
from agentkit.settings import Settings
from agentkit.skill.manifest_files import read_manifest
from agentkit.training.jsonl import read_jsonl
from agentkit.types import Query

ROOT = Path(__file__).resolve().parent.parent
PEER = Path(__file__).resolve().parent / "peers" / "semantic_router_routes.py"
TASKS = Path(__file__).resolve().parent / "routing_tasks"
STEPS = {
    "parse": "contract-parsing",
    "review": "compliance-review",
    "explain_clauses": "reporting",
    "explain_reviews": "reporting",
}
"""The skill that each step of the shipped workflow is for."""
FEW = 10
DRAWS = 3
STRESS_SKILLS, STRESS_UTTERANCES = (20, 50), 5
RESAMPLES = 1000
TIMED = 60
REFITS = 5

Flags = NDArray[np.bool_]
Floats = NDArray[np.float64]
console = Console(stderr=True)


@dataclass(frozen=True)
class Split:
    """Texts with their intents, and texts that no intent is for."""

    train: Mapping[str, list[str]]
    test: list[tuple[str, str]]
    oos_train: list[str]
    oos_test: list[str]


@dataclass(frozen=True)
class Outcome:
    """What a router said of the test rows, in their order, and of those out of scope."""

    right: Flags
    """The best skill is the right one, whether accepted or not."""
    confidence: Floats
    accepted: Flags
    oos_confidence: Floats
    oos_accepted: Flags


def main() -> int:
    parser = arguments(__doc__ or "")
    for name in ("train", "test", "oos-train", "oos-test"):
        parser.add_argument(f"--{name}", type=Path, help='rows {"text", "intent"} (JSON lines)')
    parser.add_argument(
        "--semantic-router", type=Path, help="a Python that has the package semantic-router"
    )
    options = parser.parse_args()
    if (options.train is None) != (options.test is None):
        parser.error("--train and --test belong together")
    own = options.train is not None
    encoder = SentenceEncoder(
        resolve("all-minilm-l6-v2", Settings(), "encoder"), remembered=1_000_000
    )
    metrics: list[Metric] = []
    split = given_split(options) if own else clinc150(options.data_dir)
    if split is None:
        console.print(f"skipped: no CLINC150 at {options.data_dir} (give --data-dir)")
    else:
        metrics += intents(split, encoder, options.semantic_router, judge=not own)
        metrics += harder(split, encoder)
    metrics += shipped(encoder)
    metrics += times(split.train if split else {}, encoder)
    return finish("routing", metrics, options.json)


# ---------------------------------------------------------------- rows


def clinc150(folder: Path) -> Split | None:
    folder = folder / "clinc150"
    if not folder.is_dir():
        return None
    files = [folder / f"{n}.jsonl.gz" for n in ("train", "val", "oos_train", "oos_val")]
    return split_of(*files)


def given_split(options: argparse.Namespace) -> Split:
    return split_of(options.train, options.test, options.oos_train, options.oos_test)


def split_of(train: Path, test: Path, oos_train: Path | None, oos_test: Path | None) -> Split:
    by_intent: dict[str, list[str]] = defaultdict(list)
    for row in read_jsonl(train):
        by_intent[str(row["intent"])].append(str(row["text"]))
    rows = [(str(row["text"]), str(row["intent"])) for row in read_jsonl(test)]
    outside = [str(row["text"]) for row in read_jsonl(oos_test)] if oos_test else []
    outside += [text for text, intent in rows if intent not in by_intent]
    return Split(
        by_intent,
        [row for row in rows if row[1] in by_intent],
        [str(row["text"]) for row in read_jsonl(oos_train)] if oos_train else [],
        outside,
    )


# ---------------------------------------------------------------- intents


def intents(
    split: Split, encoder: SentenceEncoder, peer: Path | None, *, judge: bool
) -> list[Metric]:
    """The rows of the controller, then those of each baseline under its name."""
    counts = [len(own) for own in split.train.values()]
    console.print(
        f"{len(counts)} intents of {min(counts)} to {max(counts)} utterances, "
        f"{len(split.test)} test rows; {len(split.oos_train)} to learn from and "
        f"{len(split.oos_test)} to test on are out of scope"
    )
    if peer is None and importlib.util.find_spec("semantic_router") is not None:
        peer = Path(sys.executable)
    if peer is None:
        console.print("semantic-router is not installed (see --semantic-router): no rows for it")
    ours = controller_outcome(split.train, split, encoder)
    rows = rows_of(ours, judge=judge)
    few: dict[str, list[float]] = defaultdict(list)
    for draw in range(DRAWS):
        chosen = fewer(split.train, np.random.default_rng(draw))
        few[""].append(float(controller_outcome(chosen, split, encoder).right.mean()))
        few["logistic."].append(float(logistic(chosen, split, encoder).right.mean()))
        few["centroids."].append(float(centroids(chosen, split, encoder).right.mean()))
        if peer is not None:
            other = semantic_router(replace(split, train=chosen, oos_test=[]), encoder, peer)
            few["semantic_router."].append(float(other.right.mean()))
    name = f"in_scope_accuracy_{FEW}_utterances"
    mean = statistics.fmean(few[""])
    rows.append(at_least(name, mean, 0.925) if judge else Metric(name, mean))
    rows += [Metric(f"{name}.low", min(few[""])), Metric(f"{name}.high", max(few[""]))]
    for prefix, baseline in (("logistic.", logistic), ("centroids.", centroids)):
        rows += rows_of(baseline(split.train, split, encoder), prefix=prefix, brief=True)
        rows.append(Metric(prefix + name, statistics.fmean(few[prefix])))
    if peer is not None:
        theirs = rows_of(semantic_router(split, encoder, peer), prefix="semantic_router.")
        theirs.append(Metric(f"semantic_router.{name}", statistics.fmean(few["semantic_router."])))
        rows += [beaten(row, rows) for row in theirs]
    return rows


def beaten(row: Metric, ours: Sequence[Metric]) -> Metric:
    """A figure of another router, with the target that ours is higher."""
    own = {metric.name: metric.value for metric in ours}.get(row.name.partition(".")[2])
    if own is None or row.value is None or row.name.endswith((".low", ".high")):
        return row
    return Metric(row.name, row.value, row.unit, f"< {own:.4g}", row.value < own)


def fewer(
    train: Mapping[str, list[str]], draw: np.random.Generator, count: int = FEW
) -> dict[str, list[str]]:
    return {
        name: [own[k] for k in sorted(draw.permutation(len(own))[:count])]
        for name, own in train.items()
    }


def harder(split: Split, encoder: SentenceEncoder) -> list[Metric]:
    """Means over draws of the intents that are skills and of their utterances; the rows of all
    other intents are out of scope like those that were."""
    rows: list[Metric] = []
    for count in STRESS_SKILLS:
        if count >= len(split.train):
            continue
        found: dict[str, list[float]] = defaultdict(list)
        for number in range(DRAWS):
            draw = np.random.default_rng(number)
            names = [
                list(split.train)[k] for k in sorted(draw.permutation(len(split.train))[:count])
            ]
            own = {name: split.train[name] for name in names}
            others = [text for text, intent in split.test if intent not in own]
            part = Split(
                fewer(own, draw, STRESS_UTTERANCES),
                [row for row in split.test if row[1] in own],
                [],
                [*others, *split.oos_test],
            )
            for prefix, outcome in (
                ("", controller_outcome(part.train, part, encoder)),
                ("logistic.", logistic(part.train, part, encoder)),
            ):
                for metric in rows_of(outcome, prefix=prefix, brief=bool(prefix)):
                    if metric.value is not None:
                        found[metric.name].append(metric.value)
        rows += [
            Metric(f"harder_{count}_skills_of_{STRESS_UTTERANCES}.{name}", statistics.fmean(values))
            for name, values in found.items()
            if not name.endswith((".low", ".high"))
        ]
    return rows


def controller_outcome(
    train: Mapping[str, list[str]], split: Split, encoder: SentenceEncoder
) -> Outcome:
    controller = Controller(encoder)
    controller.fit({name: ("", own) for name, own in train.items()}, background=split.oos_train)
    routes = controller.route_many([Query(text) for text, _ in split.test])
    outside = controller.route_many([Query(text) for text in split.oos_test])
    best = [next(iter(route.scores), None) for route in routes]
    return Outcome(
        right=np.array(
            [name == intent for name, (_, intent) in zip(best, split.test, strict=True)]
        ),
        confidence=np.array([route.score for route in routes]),
        accepted=np.array([not route.abstained for route in routes]),
        oos_confidence=np.array([route.score for route in outside]),
        oos_accepted=np.array([not route.abstained for route in outside], dtype=bool),
    )


def logistic(train: Mapping[str, list[str]], split: Split, encoder: SentenceEncoder) -> Outcome:
    """A plain logistic head; it never abstains."""
    features, labels = labelled(train, encoder)
    head = LogisticRegression(C=10, max_iter=300).fit(features, labels)
    names = list(head.classes_)
    return best_of(names, split, encoder, head.predict_proba)


def centroids(train: Mapping[str, list[str]], split: Split, encoder: SentenceEncoder) -> Outcome:
    """The nearest mean utterance by cosine; it never abstains."""
    means = np.stack([encoder.encode(own).mean(axis=0) for own in train.values()])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    return best_of(list(train), split, encoder, lambda vectors: vectors @ means.T)


def labelled(
    train: Mapping[str, list[str]], encoder: SentenceEncoder
) -> tuple[NDArray[np.float32], list[str]]:
    texts = [text for own in train.values() for text in own]
    return encoder.encode(texts), [name for name, own in train.items() for _ in own]


def best_of(
    names: Sequence[str],
    split: Split,
    encoder: SentenceEncoder,
    score: Callable[[NDArray[np.float32]], NDArray[np.float64]],
) -> Outcome:
    scores = score(encoder.encode([text for text, _ in split.test]))
    outside = score(encoder.encode(split.oos_test)) if split.oos_test else np.zeros((0, len(names)))
    best = scores.argmax(axis=1)
    return Outcome(
        right=np.array([names[k] == want for k, (_, want) in zip(best, split.test, strict=True)]),
        confidence=scores.max(axis=1),
        accepted=np.ones(len(scores), dtype=bool),
        oos_confidence=outside.max(axis=1),
        oos_accepted=np.ones(len(outside), dtype=bool),
    )


def semantic_router(split: Split, encoder: SentenceEncoder, python: Path) -> Outcome:
    """The package's router over the same vectors, as `peers/semantic_router_routes.py` has it."""
    test = [text for text, _ in split.test]
    utterances = [text for own in split.train.values() for text in own]
    every = list(dict.fromkeys([*utterances, *split.oos_train, *test, *split.oos_test]))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.savez(folder / "vectors.npz", texts=np.array(every), vectors=encoder.encode(every))
        texts = {
            "train": split.train,
            "oos_train": split.oos_train,
            "test": test,
            "oos_test": split.oos_test,
        }
        (folder / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
        subprocess.run([python, PEER, folder], check=True, stdout=sys.stderr)
        routes = json.loads((folder / "routes.json").read_text(encoding="utf-8"))
    confidence = np.array([value for _, value in routes["test"]])
    oos_confidence = np.array([value for _, value in routes["oos_test"]])
    wanted = [want for _, want in split.test]
    return Outcome(
        right=np.array([n == want for (n, _), want in zip(routes["test"], wanted, strict=True)]),
        confidence=confidence,
        accepted=confidence >= routes["threshold"],
        oos_confidence=oos_confidence,
        oos_accepted=oos_confidence >= routes["threshold"],
    )


def rows_of(
    outcome: Outcome, *, prefix: str = "", judge: bool = False, brief: bool = False
) -> list[Metric]:
    """Each figure with its 95% interval; `brief` leaves out what needs abstaining."""
    routed = outcome.right & outcome.accepted
    rows = proportion(f"{prefix}in_scope_accuracy", outcome.right, 0.967 if judge else None)
    if not brief:
        target = 0.925 if judge else None
        rows += proportion(f"{prefix}in_scope_accuracy_with_abstention", routed, target)
        target = 0.90 if judge else None
        rows += proportion(f"{prefix}oos_recall", ~outcome.oos_accepted, target)
    rows += area(f"{prefix}oos_auroc", outcome, 0.98 if judge else None)
    return rows


def proportion(name: str, flags: Flags, target: float | None) -> list[Metric]:
    """The share of true ones, with Wilson's interval (Wilson, 1927)."""
    if not len(flags):
        return [Metric(name, None)]
    share, n, z = float(flags.mean()), len(flags), 1.959964
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * float(np.sqrt(share * (1 - share) / n + z * z / (4 * n * n)))
    first = Metric(name, share) if target is None else at_least(name, share, target)
    return [first, Metric(f"{name}.low", middle - half), Metric(f"{name}.high", middle + half)]


def area(name: str, outcome: Outcome, target: float | None) -> list[Metric]:
    """The area under the ROC of confidence, with a percentile bootstrap interval."""
    inside, outside = outcome.confidence, outcome.oos_confidence
    if not len(outside) or not len(inside):
        return [Metric(name, None)]
    truth = np.concatenate([np.ones(len(inside)), np.zeros(len(outside))])
    value = float(roc_auc_score(truth, np.concatenate([inside, outside])))
    draw = np.random.default_rng(0)
    order = np.sort(inside)
    drawn = []
    for _ in range(RESAMPLES):
        some = order[np.sort(draw.integers(len(order), size=len(order)))]
        others = outside[draw.integers(len(outside), size=len(outside))]
        below = np.searchsorted(some, others, "left"), np.searchsorted(some, others, "right")
        drawn.append(1.0 - float(np.mean(below[0] + below[1])) / (2 * len(some)))
    low, high = np.quantile(drawn, [0.025, 0.975])
    first = Metric(name, value) if target is None else at_least(name, value, target)
    return [first, Metric(f"{name}.low", float(low)), Metric(f"{name}.high", float(high))]


# ---------------------------------------------------------------- the shipped skills


def shipped(encoder: SentenceEncoder) -> list[Metric]:
    """Accuracy (the right skill, or none where none fits) and recall of what no skill is for, over
    the steps of the shipped workflow and all tasks; then over the half that nobody tuned on."""
    controller = Controller(encoder)
    controller.fit({**shipped_skills(), **distractors()})
    tasks = list(read_jsonl(TASKS / "tasks.jsonl"))
    workflow = YAML(typ="safe").load((ROOT / "workflows" / "contract_review.yaml").read_text())
    steps = [
        {"text": workflow["steps"][step]["instruction"], "skill": skill, "half": "step"}
        for step, skill in STEPS.items()
    ]
    rows: list[Metric] = []
    for name, chosen in (
        ("tasks", [*steps, *tasks]),
        ("tasks_held_out", [row for row in tasks if row["half"] == "held-out"]),
    ):
        routes = controller.route_many([Query(str(row["text"])) for row in chosen])
        right = np.array([r.skill == row["skill"] for r, row in zip(routes, chosen, strict=True)])
        inside = np.array([row["skill"] is not None for row in chosen])
        rows += proportion(f"{name}.accuracy", right, 0.95)
        rows += proportion(f"{name}.oos_recall", right[~inside], 0.90)
        rows.append(
            Metric(f"{name}.in_scope_accuracy_with_abstention", float(right[inside].mean()))
        )
    return rows


def shipped_skills() -> dict[str, SkillText]:
    folders = sorted(path.parent for path in (ROOT / "skills").glob("*/skill.yaml"))
    found = [read_manifest(folder)[0] for folder in folders]
    return {manifest.name: (manifest.description, manifest.utterances) for manifest in found}


def distractors() -> dict[str, SkillText]:
    content = YAML(typ="safe").load((TASKS / "distractors.yaml").read_text(encoding="utf-8"))
    return {name: (skill["description"], skill["utterances"]) for name, skill in content.items()}


# ---------------------------------------------------------------- times


def times(train: Mapping[str, list[str]], encoder: SentenceEncoder) -> list[Metric]:
    """One route beside one pass of the encoder's model as sentence-transformers runs it, taken in
    turns on one core over texts never seen before; and a refit."""
    torch.set_num_threads(1)
    with threadpool_limits(1):
        skills: dict[str, SkillText] = {name: ("", own) for name, own in train.items()}
        controller = Controller(encoder)
        rows: list[Metric] = []
        if skills:
            utterances = [u for _, own in distractors().values() for u in own][:100]
            refits = []
            for _ in range(REFITS):
                controller.fit(skills)
                began = time.perf_counter()
                controller.fit({**skills, "one-more": ("One skill more", utterances)})
                refits.append(time.perf_counter() - began)
            taken = statistics.median(refits)
            unit = f"s, {len(skills)} skills and one more of {len(utterances)} utterances"
            rows.append(Metric("refit_seconds", taken, unit, "<= 1", taken <= 1.0))
        controller.fit(skills or distractors())
        model = SentenceTransformer(str(encoder.folder), device="cpu", local_files_only=True)
        words = [word for own in distractors().values() for u in own[1] for word in u.split()]
        draw = np.random.default_rng(0)

        def fresh(tokens: int) -> str:
            return " ".join(draw.choice(words, size=int(tokens * 0.75)))

        for tokens in (32, 256):
            routes, passes = [], []
            for turn in range(TIMED):
                one, other = fresh(tokens), fresh(tokens)
                began = time.perf_counter()
                model.encode([one], normalize_embeddings=True, show_progress_bar=False)
                middle = time.perf_counter()
                controller.route(Query(other))
                if turn >= 5:
                    routes.append(time.perf_counter() - middle)
                    passes.append(middle - began)
            ratio = statistics.median(routes) / statistics.median(passes)
            name = f"route_over_encoder_pass_{tokens}_tokens"
            if tokens == 32:
                rows.append(Metric(name, ratio, "x", "<= 1.2", ratio <= 1.2))
            else:
                rows.append(Metric(name, ratio, "x"))
            rows.append(Metric(f"route_{tokens}_tokens", 1e3 * statistics.median(routes), "ms"))
    return rows


if __name__ == "__main__":
    sys.exit(main())
