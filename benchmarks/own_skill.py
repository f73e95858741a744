"""A newcomer's own skill: from 500 labelled rows to one that is measured and routed to.

The commands of the README's "From 500 rows to a skill", one after the other as a user calls them,
in a new folder and without anything that an earlier training left: the example's rows are written,
its adapter trained (and its head on the frozen backbone, too), measured on 100 messages in wordings
that no training row has, beside the bare backbone, and asked for in words. The minutes hold every
command from its start to its end; the frozen backbone with a head of its own is measured after.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from common import Metric, arguments, at_least, at_most, finish
from trainings import AGENTKIT, ROOT

OWN = ROOT / "examples" / "own_skill"
MINUTES = 10
ASKED = (
    "Which kind of letter did they send us?",
    "Sort the incoming letters by what they are.",
    "Is this message a notice of termination?",
)


def main() -> int:
    options = arguments(__doc__ or "").parse_args()
    with TemporaryDirectory() as scratch:
        skills = Path(scratch) / "skills"
        folder = skills / "notice-kind"
        shutil.copytree(OWN / "notice-kind", folder)
        spent: dict[str, float] = {}

        def timed(what: str, command: Sequence[str | Path]) -> str:
            began = time.monotonic()
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
            spent[what] = time.monotonic() - began
            # A missed floor is the evaluation's exit code 1; its figures are printed all the same.
            if done.returncode not in ((0, 1) if what == "eval" else (0,)):
                raise SystemExit(f"{' '.join(map(str, command))}: exit code {done.returncode}")
            return done.stdout

        timed("rows", [sys.executable, OWN / "make_rows.py", folder])
        timed("train", [AGENTKIT, "train", folder, "--work", Path(scratch) / "work"])
        measured = ["--data", folder / "test.jsonl", "--base", "--json", "--skills", skills]
        found = json.loads(timed("eval", [AGENTKIT, "eval", "notice-kind", *measured]))
        routed = [
            json.loads(
                timed(f"route {number}", [AGENTKIT, "route", text, "--json", "--skills", skills])
            )["skill"]
            for number, text in enumerate(ASKED)
        ]
        minutes = sum(spent.values()) / 60
        frozen = Path(scratch) / "frozen"
        alone = ["--out", frozen, "--with", "method=head", "--with", "epochs=20"]
        timed("frozen", [AGENTKIT, "train", folder, *alone, "--work", Path(scratch) / "work"])
        measured = ["--data", folder / "test.jsonl", "--json", "--skills", frozen]
        beside = json.loads(timed("eval", [AGENTKIT, "eval", "notice-kind", *measured]))
    own, base = found["metrics"]["accuracy"], found["compared"]["base"]["metrics"]["accuracy"]
    (floor,) = found["floors"]
    of_frozen = beside["metrics"]["accuracy"]
    return finish(
        "own_skill",
        [
            at_most("from rows to a routed skill", minutes, MINUTES, "min"),
            Metric("of these, training", spent["train"] / 60, "min"),
            Metric("rows to measure on", found["rows"]),
            at_least("accuracy", own["value"], floor["floor"]),
            Metric("accuracy, low", own["low"]),
            Metric("accuracy, high", own["high"]),
            Metric("base, accuracy", base["value"]),
            Metric("frozen, accuracy", of_frozen["value"]),
            Metric("frozen, accuracy, low", of_frozen["low"]),
            Metric("frozen, accuracy, high", of_frozen["high"]),
            at_least("share routed to it", routed.count("notice-kind") / len(routed), 1.0),
        ],
        options.json,
    )


if __name__ == "__main__":
    sys.exit(main())
