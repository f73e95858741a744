"""What the benchmarks that train share: small trainings in folders that are kept."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from agentkit.errors import AgentkitError
from agentkit.skill.folder import load_skill
from agentkit.skill.manifest_files import read_manifest
from agentkit.training.copies import copy_untrained
from agentkit.training.rows import Row, load_rows
from agentkit.training.spec import TrainSpec, load_train_spec

ROOT = Path(__file__).resolve().parent.parent
SKILL = ROOT / "skills" / "compliance-review"
FROZEN = ROOT / "out" / "frozen"
"""Heads that were trained without an adapter, by skill."""
KEPT = ROOT / "benchmarks" / "frozen"
"""Such heads that are kept, so that what they are compared with takes minutes, not hours."""
AGENTKIT = Path(sys.executable).with_name("agentkit")
_ASKED_BY = ("SKILL.md", "skill.yaml")
QUALITY = ("accuracy", "macro_f1", "evidence_map")
"""What methods and ways of training are compared by, as served."""

console = Console(stderr=True)


def source(**known: Any) -> dict[str, Any]:
    """The source of the skill's train.yaml whose data set, or split, is the one named."""
    spec = load_train_spec(SKILL / "train.yaml")
    for one in spec.data:
        facts = {"dataset": one.dataset, **one.options}
        if all(facts.get(key) == value for key, value in known.items()):
            return one.model_dump(exclude_unset=True)
    raise SystemExit(f"{SKILL.name} is not trained on {known}")


def measured_on(documents: int, **known: Any) -> dict[str, Any]:
    """The source to tune on, of at most so many documents; half of what it has is held out."""
    return source(**known) | {"limit": documents, "tuning": 0.999, "holdout": 0.5}


def held_out(folder: Path, data_dir: Path, documents: int) -> list[Row]:
    """Rows of at most so many documents that a folder's training did not learn from or tune on."""
    manifest, _ = read_manifest(folder)
    split = load_rows(
        load_train_spec(folder / "train.yaml"),
        skill=folder,
        data_dir=data_dir,
        document=manifest.retrieval.document,
    )
    kept = list(dict.fromkeys(row.group for row in split.holdout))[:documents]
    return [row for row in split.holdout if row.group in kept]


def trained(name: str, into: Path, changes: Mapping[str, Any], data_dir: Path) -> Path:
    """The folder of a whole training by the changed train.yaml; trains where there is none yet."""
    folder = into / SKILL.name
    if whole(folder, changes):
        console.print(f"{name}: trained before")
        return folder
    copy_untrained(SKILL, into, changes)
    console.print(f"{name}: training")
    subprocess.run(
        [AGENTKIT, "train", folder, "--data-dir", data_dir, "--work", into / "work"],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    # Its states are its own, so that the seconds of each training hold the making of them.
    shutil.rmtree(into / "work")
    return folder


def frozen_head(name: str, data_dir: Path, into: Path = FROZEN) -> Path:
    """The folder of a shipped skill whose task head was trained without an adapter.

    That beside the benchmarks, if there is one of the skill's data. Else it is trained where there
    is none yet: one reading of all that the skill learns from by every layer, an hour or two on two
    cores. A training that was killed goes on.
    """
    for folder in (KEPT / name, into / name):
        if _trained_as(ROOT / "skills" / name, folder):
            return folder
    console.print(f"{name}: training its head on the frozen backbone")
    command = [AGENTKIT, "train", ROOT / "skills" / name, "--out", into]
    command += ["--with", "method=head", "--with", "epochs=20", "--data-dir", data_dir]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return into / name


def _trained_as(skill: Path, folder: Path) -> bool:
    """Whether a head lies there that was trained, and calibrated, on what a skill asks for now, and
    answers as the skill does."""
    asked = load_train_spec(skill / "train.yaml")
    try:
        spec = load_train_spec(folder / "train.yaml")
        done = not asked.calibration or "calibration" in record(folder)
        alike = [(folder / f).read_bytes() == (skill / f).read_bytes() for f in _ASKED_BY]
    except (OSError, ValueError, AgentkitError):
        return False
    of_it = (spec.data, spec.calibration) == (asked.data, asked.calibration)
    return done and of_it and all(alike) and (folder / "head.safetensors").is_file()


def whole(folder: Path, changes: Mapping[str, Any]) -> bool:
    """Whether the folder holds what a training with these changes gives."""
    try:
        load_skill(folder)
        found = record(folder)
        trained_spec = load_train_spec(folder / "train.yaml")
        if trained_spec.calibration and "calibration" not in found:
            return False
        spec = trained_spec.model_dump(exclude_unset=True, mode="json")
        base = load_train_spec(SKILL / "train.yaml").model_dump(exclude_unset=True)
    except (OSError, ValueError, AgentkitError):
        return False
    wanted = TrainSpec.model_validate(base | dict(changes))
    return spec == wanted.model_dump(exclude_unset=True, mode="json")


def record(folder: Path) -> dict[str, Any]:
    """The metrics.json of a training."""
    found: dict[str, Any] = json.loads((folder / "metrics.json").read_text("utf-8"))
    return found
