"""Rules that no training saw: are they read, or only known?

- Without `--folds`, on contracts other than NDAs: those of CUAD's held-out filers, whole, through
  the product's own context. The rules are those of `skills/SKILL/training/clause_rules.jsonl`
  marked `unseen`, about categories of clauses that no rule of a training is about (single sentences
  of other contracts, of any matter, are asked and denied in training, too), nor a hypothesis of
  ContractNLI. Each is asked together with its opposite, whether a contract has the clause or lacks
  it (of those that it lacks, some). And they are asked rules about what no contract between firms
  speaks of. The first contracts are skipped: earlier versions of the skill were measured on them.
- With `--folds N` instead, on ContractNLI's dev split: four hypotheses are left out of a training,
  in turn, with the rules of contracts' clauses about the same matter, and asked in their own words,
  in a paraphrase and negated. Each fold trains an adapter first, for `--minutes`, on all of the
  skill's documents or on `--limit` of each source; a fold that is there is not trained again.

Beside the contracts' stand the answers of a head that was trained on the frozen backbone (see
`benchmarks/skills.py`). Beside each stands what can be had without reading: the most
frequent verdict of all questions; of each form, stated or negated; and, the hardest to be better
than, of each category or hypothesis in each form, which of a new rule nobody knows. A pair is
turned when a rule and its opposite get opposite verdicts. Intervals are bootstraps over documents.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

from common import arguments, finish, need
from evaluations import served
from trainings import ROOT, SKILL, console, frozen_head, trained
from unseen_answers import (
    OPPOSITE,
    VERDICTS,
    Answered,
    Question,
    added,
    beside,
    measured,
    silent,
)

from agentkit.kit import Kit
from agentkit.skill.folder import Skill, load_skill
from agentkit.training.datasets import load_dataset
from agentkit.training.jsonl import read_jsonl
from agentkit.training.rows import Row, part_of
from agentkit.training.spec import load_train_spec

RULES = SKILL / "training" / "clause_rules.jsonl"
WORDINGS = SKILL / "training" / "wordings.jsonl"
FOREIGN = (
    "Bees must be kept on the premises.",
    "Staff get a free lunch on Fridays.",
    "The tenant may paint the walls blue.",
    "Passengers must wear seat belts.",
    "The choir rehearses twice a week.",
    "Pupils may not use phones in class.",
)
"""Rules about what no contract between firms speaks of: only silence is right."""
KNOWN = frozenset(("No-Solicit Of Employees",))
"""Categories whose matter a hypothesis of ContractNLI has: not new to the skill."""
FOLD = 4
"""Hypotheses that a fold leaves out."""
ALIKE = {
    "nda-4": ("Confidentiality",),
    "nda-5": ("Confidentiality",),
    "nda-7": ("Confidentiality",),
    "nda-8": ("Confidentiality",),
    "nda-10": ("Confidentiality", "Publicity"),
    "nda-11": ("Reverse Engineering",),
    "nda-15": ("License Grant", "Reserved Rights"),
    "nda-16": ("Return of Materials",),
    "nda-18": ("No-Solicit Of Customers",),
    "nda-19": ("Post-Termination Services", "Survival"),
    "nda-20": ("Return of Materials",),
}
"""Categories of clauses whose rules speak of a hypothesis's matter: left out together with it."""

Asked = dict[str, tuple[str, list[Question]]]
"""By document its text and its questions."""


def main() -> int:
    parser = arguments(__doc__ or "")
    parser.add_argument(
        "--documents", type=int, help="at most so many: by default all, 24 for folds"
    )
    parser.add_argument("--skip", type=int, default=24, help="contracts that were measured before")
    parser.add_argument("--absent", type=int, default=2, help="rules asked without a clause")
    parser.add_argument("--folds", type=int, default=0, help="fours of hypotheses left out")
    parser.add_argument("--minutes", type=float, default=40.0, help="to train each fold")
    parser.add_argument(
        "--limit", type=int, help="documents of each source that a fold learns from"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "unseen", help="the folds")
    parser.add_argument(
        "--frozen",
        type=Path,
        help="a head trained without an adapter, to print beside on contracts",
    )
    parser.add_argument("--without-frozen", action="store_true", help="train no such head")
    options = parser.parse_args()
    need(options.data_dir)
    folds = [fold(number, options) for number in range(options.folds)]
    with Kit() as kit:
        if not folds:
            asked = contracts(options)
            answers = answered(kit, kit.skills[SKILL.name], asked)
            metrics = measured("CUAD", answers)
            metrics.append(silent("CUAD", answered(kit, kit.skills[SKILL.name], foreign(asked))))
            if not options.without_frozen:
                head = options.frozen or frozen_head(SKILL.name, options.data_dir)
                alone = kit.store.admit(load_skill(head, name=SKILL.name))
                others = answered(kit, alone, asked)
                metrics += beside("CUAD, frozen", others)
                metrics += added("CUAD, over frozen", answers, others)
            return finish("unseen_contracts", metrics, options.json)
        answers = []
        for folder, left_out in folds:
            skill = kit.store.admit(load_skill(folder, name=SKILL.name))
            answers += answered(kit, skill, agreements(left_out, options))
        return finish("unseen_rules", measured("ContractNLI", answers), options.json)


def answered(kit: Kit, skill: Skill, asked: Asked) -> list[Answered]:
    """Every question, answered by the skill as a step of a workflow would be."""
    predict = served(kit, skill)
    answers: list[Answered] = []
    began = time.monotonic()
    for text, questions in asked.values():
        rows = [Row({"rule": q.rule, "document": text}, None, q.document) for q in questions]
        for question, prediction in zip(questions, predict(rows), strict=True):
            if prediction.error:
                raise RuntimeError(prediction.error)
            output = prediction.output
            answers.append(Answered(question, output["verdict"], output["score"]))
        console.print(
            f"{len(answers)} questions, {time.monotonic() - began:.0f} s", end="\r", highlight=False
        )
    return answers


# ---------------------------------------------------------------- contracts


def contracts(options: argparse.Namespace) -> Asked:
    """Held-out contracts with rules about clauses."""
    spec = load_train_spec(SKILL / "train.yaml")
    source = next(one for one in spec.data if one.dataset == "cuad_rules")
    records = load_dataset(
        "cuad_rules",
        options.data_dir,
        rules=str(RULES),
        unseen=True,
        whole=True,
        absent=options.absent,
        both=True,
    )
    asked: Asked = {}
    skipped: set[str] = set()
    for number, record in enumerate(records):
        name = f"{record['group']}/{len(record['document'])}"
        if part_of(record["group"], source) != "holdout" or record["category"] in KNOWN:
            continue
        if name not in asked and len(skipped | {name}) <= options.skip:
            skipped.add(name)
        if name in skipped or (name not in asked and len(asked) == options.documents):
            continue
        _, questions = asked.setdefault(name, (record["document"], []))
        kind = record["category"]
        verdict = VERDICTS[record["label"]]
        # What nothing decides has no opposite to turn to.
        pair = str(number) if verdict in OPPOSITE and record["opposite"] else None
        stated = (record["hypothesis"], verdict, "stated")
        negated = (record["opposite"], OPPOSITE.get(verdict, verdict), "negated")
        for rule, expected, form in (stated, negated):
            if rule:
                questions.append(Question(name, kind, rule, expected, pair, kind, form))
    return asked


def foreign(asked: Asked) -> Asked:
    """The same contracts, asked what none of them speaks of."""
    return {
        name: (text, [Question(name, "", r, "not_mentioned", None, "", "") for r in FOREIGN])
        for name, (text, _) in asked.items()
    }


# ---------------------------------------------------------------- hypotheses left out


def fold(number: int, options: argparse.Namespace) -> tuple[Path, list[str]]:
    """A copy of the skill trained without some hypotheses, and which."""
    keys = sorted(json.loads(_hypotheses(options).read_text(encoding="utf-8")))
    Random(7).shuffle(keys)
    left_out = keys[number * FOLD : (number + 1) * FOLD]
    without = {
        "contract_nli": left_out,
        "cuad_rules": sorted({category for key in left_out for category in ALIKE.get(key, ())}),
    }
    data = [
        source.model_dump(exclude_unset=True)
        | (
            {"options": source.options | {"without": without[source.dataset]}}
            if source.dataset in without
            else {}
        )
        | ({"limit": min(options.limit, source.limit or options.limit)} if options.limit else {})
        for source in load_train_spec(SKILL / "train.yaml").data
    ]
    changes = {"data": data, "max_minutes": options.minutes}
    into = options.out / f"fold-{number}"
    return trained(f"fold {number}", into, changes, options.data_dir), left_out


def agreements(left_out: Sequence[str], options: argparse.Namespace) -> Asked:
    """Dev documents asked the hypotheses left out: as they are, reworded, and negated."""
    said = json.loads(_hypotheses(options).read_text(encoding="utf-8"))
    wordings: dict[tuple[str, bool], list[str]] = defaultdict(list)
    for row in read_jsonl(WORDINGS):
        wordings[row["hypothesis"], bool(row.get("negated"))].append(row["text"])
    random = Random(7)
    asked: Asked = {}
    rows = list(read_jsonl(options.data_dir / "contract_nli" / "dev.jsonl.gz"))
    for row in rows[: options.documents or 24]:
        name = f"contract_nli/dev/{row['id']}"
        questions = asked.setdefault(name, (row["text"], []))[1]
        for key in left_out:
            label = VERDICTS[row["annotations"][key]["choice"]]
            for form, text, verdict in _forms(
                key, said[key]["hypothesis"], label, wordings, random
            ):
                # What nothing decides has no opposite to turn to.
                pair = key if form != "reworded" and label != "not_mentioned" else None
                questions.append(Question(name, f"{key} {form}", text, verdict, pair, key, form))
    return asked


def _forms(
    key: str,
    text: str,
    label: str,
    wordings: dict[tuple[str, bool], list[str]],
    random: Random,
) -> Iterator[tuple[str, str, str]]:
    turned = {"entailed": "contradicted", "contradicted": "entailed"}.get(label, label)
    yield "as it is", text, label
    yield "reworded", random.choice(wordings[key, False]), label
    yield "negated", random.choice(wordings[key, True]), turned


def _hypotheses(options: argparse.Namespace) -> Path:
    return Path(options.data_dir) / "contract_nli" / "hypotheses.json"


if __name__ == "__main__":
    sys.exit(main())
