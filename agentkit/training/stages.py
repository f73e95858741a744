"""What a training starts from, where that has to be trained first: general skills before others."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from safetensors import SafetensorError, safe_open

from agentkit import models
from agentkit.adapters.tensor_file import BACKBONE_KEY
from agentkit.errors import SkillError
from agentkit.settings import Settings
from agentkit.skill.names import split_version
from agentkit.training.copies import copy_untrained
from agentkit.training.spec import TrainSpec, load_train_spec

ADAPTER, HEAD = "adapter_model.safetensors", "head.safetensors"


def backbones_of(folder: Path) -> dict[str, str | None]:
    """By the name of each file of weights that can be read, the backbone that it names.

    A fingerprint; None for weights that name no backbone, as PEFT alone writes them.
    """
    named: dict[str, str | None] = {}
    for name in (ADAPTER, HEAD):
        with suppress(OSError, SafetensorError), safe_open(folder / name, framework="pt") as file:
            named[name] = (file.metadata() or {}).get(BACKBONE_KEY)
    return named


def trained_for(folder: Path, backbone: str) -> bool:
    """Whether weights lie there that may be of that backbone, a fingerprint.

    A head without an adapter has to name it: else it is one whose adapter was not written any more.
    """
    named = backbones_of(folder)
    whole = ADAPTER in named or named.get(HEAD) is not None
    return whole and all(name in (None, backbone) for name in named.values())


def weights_digest(folder: Path) -> str:
    """SHA-256, hex, over the weights of a trained folder."""
    digest = hashlib.sha256()
    for name in (ADAPTER, HEAD):
        with suppress(OSError):
            digest.update(name.encode() + hashlib.sha256((folder / name).read_bytes()).digest())
    return digest.hexdigest()


def started_from(named: str, origin: Path, copy: Path, backbone: str) -> Path:
    """The folder that `start_from: named` means in a copy of the skill folder `origin`.

    It counts from `origin`, as every path of a train.yaml, unless that has no weights of the
    backbone and what was trained beside, or in, the copy has some. Both may be one folder.
    """
    if not trained_for(origin / named, backbone) and trained_for(copy / named, backbone):
        return copy / named
    return origin / named


@dataclass(frozen=True, slots=True)
class Stage:
    """A skill folder that is trained before another, which starts from it."""

    folder: Path
    copy: Path | None
    """Where a copy of it is trained; None for the folder itself."""
    work: Path


class Places:
    """Where skill folders are trained, and those that they start from before them.

    With `out`, copies are trained in there, by `changes` of their train.yaml; `work` holds what a
    training keeps for itself, of each folder in one of its own where there are several.
    """

    def __init__(
        self,
        folders: Sequence[Path],
        settings: Settings,
        out: Path | None = None,
        work: Path | None = None,
        changes: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self._asked = {folder.resolve() for folder in folders}
        self._settings = settings
        self._out = out
        self._work = work
        self._changes = changes
        self._stages: dict[Path, Stage] = {}
        self._named: dict[Path, str] = {}

    def before(self, folder: Path) -> list[Path]:
        """Folders that have to be trained before this one, which starts from them, in their order.

        These are folders with a train.yaml and no weights of the backbone, and what they start from
        in turn. A copy of one lies to the copy of `folder` as it lies to `folder`.
        Raises `SkillError` for a folder that starts from itself, for one that is of another
        backbone, no part of `folder` and not to be copied, and where a copy would lie elsewhere.
        """
        try:
            spec = load_train_spec(self.folder_of(folder) / "train.yaml")
        except SkillError:
            return []  # its own training says what is wrong with it
        skill, named = folder, spec.start_from
        copy = self._out and self._out / folder.resolve().name
        stages: list[Stage] = []
        seen = {folder.resolve()}
        if named:
            self._named[folder] = named
        while named:
            folder, copy = folder / named, copy and (copy / named).resolve()
            if folder.resolve() in seen:
                raise SkillError("a training cannot start from what it leads to", where=str(folder))
            seen.add(folder.resolve())
            within = folder.resolve().is_relative_to(skill.resolve())
            if not (folder / "train.yaml").is_file() or self._is_done(folder, within):
                break
            first = load_train_spec(folder / "train.yaml")
            _check_size(spec, first, folder)
            if copy:
                self._check_copy(folder, copy)
            elif not within and backbones_of(folder):
                raise SkillError(
                    "was trained on another backbone, and other skills may start from it",
                    where=str(folder),
                    hint="say --out DIR, which trains a copy, or train it by itself",
                )
            stages.append(Stage(folder, copy, self._stage_work(skill, folder, within)))
            spec, named = first, first.start_from
            if named:
                self._named[folder] = named
        self._stages |= {stage.folder: stage for stage in stages}
        return [stage.folder for stage in reversed(stages)]

    def start_of(self, folder: Path) -> Path | None:
        """The folder whose weights the training of one begins with, once all before it are done."""
        if (named := self._named.get(folder)) is None:
            return None
        stage = self._stages.get(folder)
        copy = stage.copy if stage else self._out and self._out / folder.resolve().name
        return started_from(named, folder, copy or folder, self._backbone())

    def folder_of(self, folder: Path) -> Path:
        """The folder itself, or its copy, made now."""
        stage = self._stages.get(folder)
        into = stage.copy.parent if stage and stage.copy else self._out
        if not into:
            return folder
        changes = self._changes if folder.resolve() in self._asked else {}
        return copy_untrained(folder, into, changes)

    def work_of(self, folder: Path) -> Path:
        """What its training keeps for itself: states of lower layers, checkpoints."""
        if stage := self._stages.get(folder):
            return stage.work
        if self._work is None:
            name, _ = split_version(folder.resolve().name, str(folder))
            return self._settings.home / "training" / name
        return self._work / folder.resolve().name if len(self._asked) > 1 else self._work

    def _stage_work(self, skill: Path, stage: Path, within: bool) -> Path:
        """One that several skills start from has one place, where a second training waits."""
        name = stage.resolve().name
        if within:
            return self.work_of(skill) / "stages" / name
        return (self._work or self._settings.home / "training") / name

    def _is_done(self, folder: Path, within: bool) -> bool:
        """What was killed before its record was written is not; of another's folder who knows."""
        whole = not within or (folder / "metrics.json").is_file()
        return whole and trained_for(folder, self._backbone())

    def _check_copy(self, folder: Path, copy: Path) -> None:
        out = (self._out or copy).resolve()
        elsewhere = folder.resolve() in self._asked and copy != out / folder.resolve().name
        if elsewhere or copy.name != folder.resolve().name or not copy.is_relative_to(out):
            raise SkillError(
                f"is not trained for this backbone, and its copy cannot lie at {copy}",
                where=str(folder),
                hint="train it by itself, and say --with start_from=FOLDER of what that wrote",
            )

    def _backbone(self) -> str:
        backbone = models.resolve(self._settings.backbone, self._settings, "backbone")
        return models.fingerprint(backbone)


def _check_size(spec: TrainSpec, first: TrainSpec, folder: Path) -> None:
    """Said before hours of training: what is said once its weights are there is said then."""
    adapters = "head" not in (spec.method, first.method)
    if adapters and (spec.rank != first.rank or "auto" in (spec.size, first.size)):
        raise SkillError(
            "start_from needs an adapter of the same rank, whatever is found to be the best",
            where=str(folder),
            hint="give both the same `rank`, and no `size`",
        )
