"""A new skill's folder: everything but the adapter, sound as it stands, with what to fill in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal, TypeAlias

from agentkit.errors import SkillError
from agentkit.skill.folder import check_name
from agentkit.types import Json

Kind: TypeAlias = Literal["choice", "marks", "text"]

EXAMPLE_ROWS = "rows.example.jsonl"
ROWS = "rows.jsonl"


def new_skill(folder: Path, kind: Kind) -> tuple[Path, ...]:
    """Write a skill folder of a kind, named like the folder; returns its files.

    `choice` picks one of a few answers and points at the evidence, `marks` labels stretches of
    documents, `text` writes. Raises `SkillError` for a name that no skill may have, and when there
    is something at `folder` already: nothing is ever overwritten.
    """
    check_name(folder.name, str(folder))
    try:
        folder.mkdir(parents=True)
    except FileExistsError as error:
        raise SkillError(
            "there is something already", where=str(folder), hint="choose another name"
        ) from error
    except NotADirectoryError as error:
        raise SkillError("it lies in a file", where=str(folder)) from error
    paths = []
    for name, text in skill_files(folder.name, kind).items():
        paths.append(folder / name)
        with paths[-1].open("x", encoding="utf-8") as file:
            file.write(text)
    return tuple(paths)


def skill_files(name: str, kind: Kind) -> dict[str, str]:
    """The texts of a new skill's files by their names."""
    words = name.replace("-", " ")
    return {
        "SKILL.md": _SKILL_MD.format(name=name, words=words, does=_DOES[kind]),
        "skill.yaml": _HEAD[kind] + _UTTERANCES.format(words=words) + _METRICS[kind],
        "train.yaml": _TRAIN.format(
            rows=ROWS,
            example=EXAMPLE_ROWS,
            rate=_RATES[kind],
            baseline="" if kind == "text" else _BASELINE,
        )
        + (_CALIBRATION if kind == "choice" else ""),
        EXAMPLE_ROWS: "".join(
            json.dumps(row, ensure_ascii=False) + "\n" for row in _example_rows(kind)
        ),
    }


def next_steps(folder: Path, kind: Kind) -> tuple[str, ...]:
    """What is left to do until the skill can be routed to, in order."""
    fields = {
        "choice": "the answers to choose from (answer.choices, and the enum in output)",
        "marks": "the labels (answer.labels)",
        "text": "the fields that it writes (output)",
    }
    return (
        f"{folder / 'SKILL.md'}: say what the skill does and when to use it (description: the "
        "controller reads it), and what the model is told (the body)",
        f"{folder / 'skill.yaml'}: {fields[kind]}, what it takes (input, prompt), and 10 to 25 "
        "ways in which people ask for it (utterances)",
        f"{folder / ROWS}: labelled rows like those in {EXAMPLE_ROWS}, 200 or more",
        f"agentkit train {folder}",
        f"agentkit skills check {folder}",
        f"agentkit rows {folder} --part holdout > test.jsonl",
        f"agentkit eval {folder.name} --skills {folder.parent} --data test.jsonl --base",
    )


_DOES: Mapping[Kind, str] = MappingProxyType(
    {
        "choice": "Decide whether the document answers the question with yes or no",
        "marks": "Mark the passages of a document that name a task or a date",
        "text": "Sum a passage up in one plain sentence and grade its tone",
    }
)

_SKILL_MD = """---
name: {name}
description: >-
  {does}. Replace this with what {words} does and when to use it, in one or two sentences: the
  controller chooses by it.
---
{does}.

Replace this with what the model is to do. It is read before every question, so keep it short.
"""

_CHOICE = """version: "1"

# What the skill takes. A step of a workflow must give these fields.
input:
  type: object
  properties:
    question: {type: string}
    document: {type: string, description: "The document, as text or as a reference to one."}
  required: [question, document]

# What it gives. `answer` must list the very choices below.
output:
  type: object
  properties:
    answer: {enum: ["yes", "no", unclear]}
    evidence: {type: array}
    score: {type: number}
  required: [answer, evidence, score]

# What is asked after the document, as a Jinja template over the input.
prompt:
  question: "Question: {{ question }}"

answer:
  kind: choice
  choices: ["yes", "no", unclear]
  field: answer
  evidence_field: evidence   # the passages that carry the answer
  no_evidence: [unclear]     # an answer for which there are none
  # scoring: likelihood      # for few rows, by the answers' words instead of a head: without the
  #                            two lines above, and without evidence in output

retrieval:
  document: document
  query: "{{ question }}"
"""

_MARKS = """version: "1"

# What the skill takes. A step of a workflow must give these fields.
input:
  type: object
  properties:
    document: {type: string, description: "The document, as text or as a reference to one."}
  required: [document]

# What it gives: a list of marks for each of answer.fields.
output:
  type: object
  properties:
    marks:
      type: array
      items:
        type: object
        properties:
          label: {type: string}
          quote: {type: string}
          start: {type: integer}
          end: {type: integer}
          score: {type: number}
        required: [label, quote, start, end, score]
  required: [marks]

prompt:
  question: ""

answer:
  kind: marks
  fields:
    marks: {label_key: label, quote_key: quote}
  labels:
    - {name: task}               # whole sentences
    - {name: date, unit: token}  # words inside a sentence, such as names and dates

retrieval:
  document: document
  mode: windows
  window: 1024
"""

_TEXT = """version: "1"

# What the skill takes. A step of a workflow must give these fields.
input:
  type: object
  properties:
    text: {type: string}
  required: [text]

# What it writes. Fields with an enum are labels; give every other string a maxLength.
output:
  type: object
  properties:
    tone: {enum: [friendly, neutral, stern]}
    summary: {type: string, minLength: 8, maxLength: 200}
  required: [tone, summary]

# What is asked, as a Jinja template over the input.
prompt:
  question: "Text: {{ text[:2000] }}"

answer:
  kind: generate
  # choice_field: tone  # have a trained head choose this label; an output field `score` gets how
  #                       sure it is
  # choice_by: probe    # choose by words and the layers below the adapter: for many labels
  # choice_given: "{{ tone | default('') }}"  # unless the input says it already

generation:
  max_tokens: 96
  # beams: 4            # write the likeliest of several answers; slower where it wavers
  # beams_if_stuck: 4   # only where the schema forbids what the skill would write next
"""

_HEAD: Mapping[Kind, str] = MappingProxyType({"choice": _CHOICE, "marks": _MARKS, "text": _TEXT})

_UTTERANCES = """
# What people say when they want this skill, in their own words: 10 to 25 different ways.
utterances:
  - {words}
"""

_METRICS: Mapping[Kind, str] = MappingProxyType(
    {
        "choice": """
# `agentkit eval` fails where a figure is below its floor.
metrics:
  accuracy: {floor: 0.5}
""",
        "marks": """
# `agentkit eval` fails where a figure is below its floor.
metrics:
  span_f1: {floor: 0.2}
""",
        "text": """
# `agentkit eval` fails where a figure is below its floor.
metrics:
  rouge_l: {floor: 0.2}
""",
    }
)

_RATES: Mapping[Kind, str] = MappingProxyType(
    {"choice": "3.0e-4", "marks": "4.0e-4", "text": "6.0e-4"}
)

_TRAIN = """# `agentkit advise` says what else would suit your rows and your machine.
method: lora         # or dora, alora, bottleneck, hybrid, prefix, or head: the task head alone
layers: upper 1/3    # only these are adapted: what lies below is computed once
rank: 16
alpha: 32
learning_rate: {rate}  # of LoRA and its kin; without this line each method has its own
epochs: 2
max_minutes: 10      # of steps; what comes before and after takes its own time
packs_per_step: 1
seed: 7
{baseline}data:
  - path: {rows}  # {{"input": ..., "expected": ...}} a line, as in {example}
    tuning: 0.1       # this share of the documents chooses thresholds and watches progress
    holdout: 0.1      # never seen: `agentkit rows --part holdout` prints it, to measure on
"""

_BASELINE = """\
frozen_baseline: true  # the head alone, too (as long at most): what does the adapter add?
"""

_CALIBRATION = """# calibration:    # questions that `data` does not ask: how sure to be of such
#   - path: new.jsonl
"""

_NOTE = (
    "The hall opens at nine. Visitors sign the book at the door. "
    "Ann waters the plants by 3 May. The lift is out of order."
)


def _example_rows(kind: Kind) -> list[Json]:
    if kind == "choice":
        asked = [
            ("Does the hall open at nine?", "yes", "The hall opens at nine."),
            ("Does the lift work?", "no", "The lift is out of order."),
            ("Is there a car park?", "unclear", None),
        ]
        return [
            {
                "input": {"question": question, "document": _NOTE},
                "expected": {"answer": answer, "evidence": [_place(words)] if words else []},
            }
            for question, answer, words in asked
        ]
    if kind == "marks":
        found = [("task", "Ann waters the plants by 3 May."), ("date", "3 May")]
        marks = [{"label": label, **_place(words)} for label, words in found]
        return [{"input": {"document": _NOTE}, "expected": {"marks": marks}}]
    return [
        {
            "input": {"text": "Kindly leave your boots at the door; the floor was just waxed."},
            "expected": {"tone": "friendly", "summary": "Take your boots off at the door."},
        },
        {
            "input": {"text": "Whoever parks here again will be towed at once, without notice."},
            "expected": {"tone": "stern", "summary": "Cars parked here are towed without notice."},
        },
    ]


def _place(words: str) -> dict[str, int]:
    start = _NOTE.index(words)
    return {"start": start, "end": start + len(words)}
