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
from agentkit.training.spec import SIZED_BY, TrainSpec, changed_train_spec

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
    """The folder that `start_from: named` (or `layers_of`) means in a copy of the folder `origin`.

    It counts from `origin`, as every path of a train.yaml, unless that has no weights of the
    backbone and what was trained beside, or in, the copy has some. Both may be one folder.
    """
    beside = (copy / named).resolve()  # the copy itself may not be there yet
    if not trained_for(origin / named, backbone) and trained_for(beside, backbone):
        return beside
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

        These are folders with a train.yaml and no weights of the backbone, or which are to be
        trained as well, and what they start from in turn. A copy of one lies to the copy of
        `folder` as it lies to `folder`.
        Raises `SkillError` for a folder that starts from itself, for one that is of another
        backbone, no part of `folder` and not to be copied, for one of another size, and where a
        copy would lie elsewhere.
        """
        try:
            spec = self._spec(folder)
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
            asked = folder.resolve() in self._asked and folder.resolve() not in seen
            done = trained_for(folder, self._backbone()) and not (asked and not copy)
            if done or not (folder / "train.yaml").is_file():
                break
            if folder.resolve() in seen:
                raise SkillError("a training cannot start from what it leads to", where=str(folder))
            seen.add(folder.resolve())
            within = folder.resolve().is_relative_to(skill.resolve())
            first = self._spec(folder)
            _check_size(spec, first, folder)
            if copy:
                self._check_copy(folder, copy)
            elif not (within or asked) and self._is_of_another(folder):
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
            return self._settings.home / "training" / _name(folder)
        return self._work / folder.resolve().name if len(self._asked) > 1 else self._work

    def _stage_work(self, skill: Path, stage: Path, within: bool) -> Path:
        """One that several skills start from has one place, and lies there when it is asked for."""
        if within:
            return self.work_of(skill) / "stages" / _name(stage)
        return (self._work or self._settings.home / "training") / _name(stage)

    def _spec(self, folder: Path) -> TrainSpec:
        """What a folder, or its copy, is trained by."""
        changes = self._changes if folder.resolve() in self._asked else {}
        return changed_train_spec(folder / "train.yaml", changes)

    def _is_of_another(self, folder: Path) -> bool:
        named = backbones_of(folder).values()
        return any(one not in (None, self._backbone()) for one in named)

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


def _name(folder: Path) -> str:
    return split_version(folder.resolve().name, str(folder))[0]


def _check_size(spec: TrainSpec, first: TrainSpec, folder: Path) -> None:
    """Said before hours of training, not once there are weights that do not fit."""
    if "head" in (spec.method, first.method):
        return
    for found in filter(None, (spec.finds_size, first.finds_size)):
        raise SkillError(
            f"start_from needs an adapter of the same size, which {found} would find",
            where=str(folder),
            hint="take it out of both (in `search`, `rank: []`)",
        )
    for name in set(SIZED_BY[spec.method]) & set(SIZED_BY[first.method]):
        there, here = getattr(first, name), getattr(spec, name)
        if there != here:
            raise SkillError(
                f"start_from needs an adapter of the same {name}: {there} there, {here} here",
                where=str(folder),
            )
