"""The shipped skills on data that they never saw, beside the frozen backbone and cheap baselines.

- compliance-review: ContractNLI's dev split, whole documents through the product's own context;
  beside it each hypothesis's most frequent label in the training split. With `--words` instead
  some of these documents, asked the hypotheses in words that no training has (`new_words.jsonl`),
  stated and negated.
- contract-parsing: the CUAD contracts of the filers that its train.yaml leaves out; beside it the
  labels of the training sentences that are nearest by TF-IDF.
- reporting: the ToS;DR services and clauses of CUAD contracts that its train.yaml leaves out, and
  tldrlegal; of tldrlegal and of contracts' sentences, and rules made of these, if it names them,
  what it leaves out. Beside it the nearest training row by TF-IDF, its labels by the vote of seven,
  and of tldrlegal the passage's first sentence as it stands.

Intervals are bootstraps over documents. The frozen backbone answers with the same prompt, schema
and scoring; a probe reads it anyhow. Where a task head answers or chooses, the same head is trained
on the frozen backbone, if there is none yet (`benchmarks/frozen` keeps compliance-review's): an
hour or two for a skill. `--frozen SKILL=DIR` names one that was trained elsewhere,
`--without-frozen` leaves the line out.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from common import Metric, arguments, at_least, at_most, finish, need
from evaluations import bounds, compared, console, served
from trainings import ROOT, frozen_head

from agentkit.evaluation.baselines import Predictor, baselines
from agentkit.evaluation.report import Evaluation
from agentkit.evaluation.scoring import Prediction
from agentkit.evaluation.serving import BareEngine
from agentkit.kit import Kit
from agentkit.skill.folder import load_skill
from agentkit.skill.manifest import GenerateAnswer
from agentkit.training.jsonl import read_jsonl
from agentkit.training.rows import Row, Split, load_rows
from agentkit.training.spec import DataSpec, TrainSpec, load_train_spec

ADDS = 0.03
"""What an adapter must add to the frozen backbone, and reporting to its neighbours."""

NEW_WORDS = Path(__file__).with_name("new_words.jsonl")
IN_NEW_WORDS = {False: "ContractNLI dev in new words", True: "ContractNLI dev in new words negated"}
"""What hypotheses are called that are stated, and negated, in words that no training has."""
ASKED_ANEW = 20
"""Documents that are asked so."""
OPPOSITE = {"entailed": "contradicted", "contradicted": "entailed"}

Measured = tuple[str, Sequence[Row], Sequence[Row]]
"""A name, the rows to measure on, and those that a baseline may learn from."""


def main() -> int:
    parser = arguments(__doc__ or "")
    parser.add_argument("--skill", action="append", choices=sorted(MEASURES), help="only these")
    parser.add_argument("--documents", type=int, help="at most so many of each set")
    parser.add_argument(
        "--frozen", action="append", default=[], metavar="SKILL=DIR", help="heads without adapters"
    )
    parser.add_argument("--without-frozen", action="store_true", help="train no such head")
    parser.add_argument(
        "--words", action="store_true", help="compliance-review's hypotheses in new words, alone"
    )
    options = parser.parse_args()
    need(options.data_dir)
    frozen = {name: Path(path) for name, _, path in (f.partition("=") for f in options.frozen)}
    metrics: list[Metric] = []
    with ExitStack() as open_:
        kit = open_.enter_context(Kit())
        bare = open_.enter_context(BareEngine.open(kit.settings))
        for name in ["compliance-review"] if options.words else options.skill or MEASURES:
            skill = kit.skills[name]
            for set_, rows, learnt in MEASURES[name](options):
                rows = some_documents(rows, options.documents)
                if not rows:
                    console.print(f"{name}, {set_}: no row that it has not seen")
                    metrics.append(Metric(f"{name}, {set_}, rows", 0, "", "> 0", False))
                    continue
                predictors: dict[str, Predictor] = {"adapter": served(kit, skill)}
                # What a probe reads is the frozen backbone's own.
                bare_too = not skill.head or skill.manifest.probes
                if isinstance(skill.manifest.answer, GenerateAnswer) and bare_too:
                    predictors["frozen"] = served(kit, skill, bare)
                elif not options.without_frozen:
                    head = frozen.get(name) or frozen_head(name, options.data_dir)
                    other = kit.store.admit(load_skill(head, name=name))
                    predictors["frozen"] = served(kit, other, bare)
                if learnt:
                    predictors |= baselines(skill.manifest, learnt)
                if set_.startswith("tldrlegal"):
                    predictors["first sentence"] = lead
                began = time.monotonic()
                found = compared(kit, f"{name}, {set_}", skill.manifest, rows, predictors)
                console.print(f"{name}, {set_}: {time.monotonic() - began:.0f} s")
                metrics += figures(f"{name}, {set_}", found)
    return finish("skills_words" if options.words else "skills", metrics, options.json)


def some_documents(rows: Sequence[Row], most: int | None) -> list[Row]:
    kept = set(list(dict.fromkeys(row.group for row in rows))[:most])
    return [row for row in rows if row.group in kept]


# ---------------------------------------------------------------- what is measured on


def spec_of(skill: str) -> TrainSpec:
    return load_train_spec(ROOT / "skills" / skill / "train.yaml")


def split_of(skill: str, options: argparse.Namespace) -> Split:
    return load_rows(spec_of(skill), skill=ROOT / "skills" / skill, data_dir=options.data_dir)


def only(skill: str, options: argparse.Namespace, source: DataSpec) -> Sequence[Row]:
    """All rows of one source."""
    whole = source.model_copy(update={"limit": None, "tuning": 0.0, "holdout": 0.0})
    spec = spec_of(skill).model_copy(update={"data": (whole,)})
    return load_rows(spec, skill=ROOT / "skills" / skill, data_dir=options.data_dir).train


def compliance_review(options: argparse.Namespace) -> Iterable[Measured]:
    known = next(s for s in spec_of("compliance-review").data if s.dataset == "contract_nli")
    parts = {
        split: only(
            "compliance-review", options, known.model_copy(update={"options": {"split": split}})
        )
        for split in ("dev", "train_evidence")
    }
    if not options.words:
        yield "ContractNLI dev", parts["dev"], parts["train_evidence"]
        return
    some = some_documents(parts["dev"], ASKED_ANEW)
    known_as = json.loads(
        (options.data_dir / "contract_nli" / "hypotheses.json").read_text("utf-8")
    )
    for negated, set_ in IN_NEW_WORDS.items():
        words = {
            known_as[one["hypothesis"]]["hypothesis"]: one["text"]
            for one in read_jsonl(NEW_WORDS)
            if one["negated"] is negated
        }
        anew, learnt = (reworded(rows, words, negated) for rows in (some, parts["train_evidence"]))
        yield set_, anew, learnt


def reworded(rows: Iterable[Row], words: Mapping[str, str], negated: bool) -> list[Row]:
    """The same documents asked the rows' rules in other words, and what is right of these."""
    turned = OPPOSITE if negated else {}
    return [
        replace(
            row,
            input={**row.input, "rule": words[row.input["rule"]]},
            expected={**row.expected, "verdict": turned.get(verdict, verdict)},
        )
        for row in rows
        for verdict in [row.expected["verdict"]]
    ]


def held_out(skill: str, options: argparse.Namespace) -> Split:
    """A skill's rows, if its adapter was trained without those that are held out now."""
    split = split_of(skill, options)
    made = json.loads((ROOT / "skills" / skill / "metrics.json").read_text(encoding="utf-8"))
    then = [source.get("holdout_rows", 0) for source in made["data"]]
    if then != [source["holdout_rows"] for source in split.sources]:
        console.print(f"{skill}: its adapter was trained on rows that are held out now")
        return replace(split, holdout=())
    return split


def contract_parsing(options: argparse.Namespace) -> Iterable[Measured]:
    split = held_out("contract-parsing", options)
    yield "CUAD held out", split.holdout, split.train


def reporting(options: argparse.Namespace) -> Iterable[Measured]:
    split = held_out("reporting", options)

    def of(
        rows: Iterable[Row], *groups: str, category: bool = False, rule: bool = False
    ) -> list[Row]:
        return [
            row
            for row in rows
            if row.group.startswith(groups)
            and ("category" in row.input) is category
            and ("rule" in row.input) is rule
        ]

    terms = of(split.train, "tosdr/", "tldrlegal/")
    yield "ToS;DR held out", of(split.holdout, "tosdr/"), of(terms, "tosdr/")
    taught = {source.dataset for source in spec_of("reporting").data}
    if "tldrlegal" in taught:
        yield "tldrlegal held out", unrated(of(split.holdout, "tldrlegal/")), terms
    else:
        plain = DataSpec(
            dataset="tldrlegal", input={"quote": "original"}, expected={"statement": "summary"}
        )
        yield "tldrlegal", only("reporting", options, plain), terms
    yield (
        "contract clauses held out",
        of(split.holdout, "cuad/", category=True),
        of(split.train, "cuad/", category=True),
    )
    if "cuad_restated" in taught:
        yield (
            "contract sentences held out",
            unrated(of(split.holdout, "cuad/")),
            of(split.train, "cuad/"),
        )
    if rules := of(split.holdout, "cuad/", rule=True)[::RULES_EACH]:
        yield "rules held out", unrated(rules), of(split.train, "cuad/", "contract_nli/", rule=True)


def lead(rows: Sequence[Row]) -> list[Prediction]:
    """The first sentence of each row's passage, or all of it."""
    return [Prediction({"statement": row.input["quote"].partition(". ")[0]}) for row in rows]


def unrated(rows: Iterable[Row]) -> list[Row]:
    """Rows of data sets that rate nothing, without the rating that they are taught with."""
    return [replace(row, expected={"statement": row.expected["statement"]}) for row in rows]


MEASURES: dict[str, Callable[[argparse.Namespace], Iterable[Measured]]] = {
    "compliance-review": compliance_review,
    "contract-parsing": contract_parsing,
    "reporting": reporting,
}


# ---------------------------------------------------------------- what is said

FLOORS = {
    ("compliance-review", "accuracy"): 0.76,
    ("compliance-review", "macro_f1"): 0.66,
    ("contract-parsing", "aupr"): 0.30,
    ("reporting", "supported"): 1.0,
}
MARGINS = {
    ("compliance-review", "prior", "accuracy"): 0.0,
    ("compliance-review", "prior", "macro_f1"): 0.0,
    ("reporting", "tf-idf", "rouge_l"): ADDS,
    ("reporting", "tf-idf", "accuracy.rating"): ADDS,
    **{
        (skill, "frozen", figure): ADDS
        for skill, figure in (
            ("compliance-review", "accuracy"),
            ("contract-parsing", "aupr"),
            ("reporting", "rouge_l"),
        )
    },
}
"""By how much the adapter must exceed another; the interval of the difference excludes zero."""
BY_PATTERN = ("contract clauses held out", "contract sentences held out", "rules held out")
"""No margin is asked of these: statements about clauses follow patterns, which a neighbour knows,
and their topic is given; those of sentences and of rules copy."""
ANEW = tuple(IN_NEW_WORDS.values())
"""Nor of these, and no floor: they stand beside the hypotheses' own words."""
RULES_EACH = 5
"""Of the held-out rules every so many are read: each says whether a rule is repeated whole."""
MOST_ECE = 0.05


def figures(where: str, found: Evaluation) -> list[Metric]:
    """Each figure with its interval, then what the adapter adds to each of the others."""
    skill, _, set_ = where.partition(", ")
    metrics = [Metric(f"{where}, rows", found.rows), Metric(f"{where}, documents", found.documents)]
    # A row that failed is answered wrong, and missing from what is measured of answers alone.
    metrics += [
        at_most(f"{where}, {subject}, failed", one.failed, 0)
        for subject, one in found.subjects.items()
    ]
    for subject, one in found.subjects.items():
        for name, figure in one.figures.items():
            if figure.value is None:
                continue
            called = f"{where}, {subject}, {name}"
            judged = subject == "adapter"
            floor = FLOORS.get((skill, name)) if judged and set_ not in ANEW else None
            if (skill, name) == ("contract-parsing", "precision_at_80_recall") and judged:
                metrics.append(Metric(called, figure.value, "", "> 0", figure.value > 0))
            elif floor is not None:
                metrics.append(at_least(called, figure.value, floor))
            elif judged and name == "ece" and set_ not in BY_PATTERN:
                metrics.append(at_most(called, figure.value, MOST_ECE))
            else:
                metrics.append(Metric(called, figure.value))
            metrics += bounds(called, figure)
        for name, figure in one.differences.items():
            if figure.value is None:
                continue
            called = f"{where}, adapter over {subject}, {name}"
            margin = MARGINS.get((skill, subject, name))
            sure = figure.low is None or figure.low > 0
            metrics.append(
                Metric(called, figure.value)
                if margin is None or set_ in (*BY_PATTERN, *ANEW)
                else Metric(
                    called,
                    figure.value,
                    "",
                    f">= {margin:g}, surely above 0",
                    figure.value >= margin and sure,
                )
            )
            metrics += bounds(called, figure)
    return metrics


if __name__ == "__main__":
    sys.exit(main())
