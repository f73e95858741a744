"""Content-addressed copies of skills: what is served, whatever happens to the folder."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from agentkit.errors import SkillError
from agentkit.skill.folder import (
    METRICS,
    README,
    Skill,
    folder_digest,
    load_skill,
    open_inside,
)

_EXTRAS = (METRICS, README)
_TEMPORARY = ".tmp-"
_ABANDONED_SECONDS = 3600.0
_ATTEMPTS = 5
_BLOCK = 1 << 20


class SkillStore:
    """Stateful: a folder of skill copies, each under its digest, shared by any number of processes.

    A copy appears whole or not at all, and is never changed; only `metrics.json` and `README.md`,
    which are no part of the digest, follow the folder that was admitted last.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._verified: set[str] = set()

    def admit(self, skill: Skill) -> Skill:
        """The same skill, pointing at its copy in the store, which is made if need be.

        If the folder changed after it was read, it is read again, and what comes back is what
        stands there now. Raises `SkillError` if it cannot be read, or keeps changing.
        """
        for _ in range(_ATTEMPTS):
            if self._holds(skill.digest):
                self._refresh_extras(skill)
                return replace(skill, path=self.directory / skill.digest)
            if self._copy(skill):
                self._verified.add(skill.digest)
                return replace(skill, path=self.directory / skill.digest)
            skill = load_skill(skill.path, name=skill.name)
        raise SkillError(
            "the folder keeps changing while it is read",
            where=str(skill.path),
            hint="try again once it is written",
        )

    def get(self, digest: str, name: str) -> Skill:
        """The copy under `digest`, as the skill `name`: how an old run finds what it began with.

        Raises `SkillError` if the store does not hold it, or holds it damaged.
        """
        path = self.directory / digest
        if len(digest) != 64 or not digest.isalnum() or not path.is_dir():
            raise SkillError(
                f"no copy of the skill {name!r} with the digest {digest[:64]!r}",
                where=str(self.directory),
                hint="install that version of the skill again",
            )
        skill = load_skill(path, name=name)
        if skill.digest != digest:
            raise SkillError(
                f"the stored copy of the skill {name!r} was changed",
                where=str(path),
                hint="remove it and install the skill again",
            )
        return skill

    def _holds(self, digest: str) -> bool:
        """Whether a sound copy is there; verified once in the life of this object."""
        path = self.directory / digest
        if digest in self._verified and path.is_dir():
            return True
        if not path.is_dir():
            return False
        files = tuple(entry.name for entry in path.iterdir() if entry.name not in _EXTRAS)
        candidates = [files] if not (path / README).is_file() else [files, (*files, README)]
        try:
            sound = any(folder_digest(path, names) == digest for names in candidates)
        except SkillError:
            sound = False
        if sound:
            self._verified.add(digest)
        else:
            self._set_aside(path)
        return sound

    def _set_aside(self, path: Path) -> None:
        """Move a damaged copy away, so that a sound one can take its place."""
        with self._scratch() as scratch, contextlib.suppress(FileNotFoundError):
            path.rename(scratch / "damaged")

    def _copy(self, skill: Skill) -> bool:
        """Copy the folder; false if its contents are no longer those of `skill.digest`."""
        with self._scratch() as scratch:
            target = scratch / "copy"
            target.mkdir()
            try:
                for file in skill.files:
                    _copy_file(skill.path, target, file)
            except SkillError:
                if not skill.path.is_dir():
                    raise
                return False
            if folder_digest(target, skill.files) != skill.digest:
                return False
            for file in _EXTRAS:
                if file not in skill.files and (skill.path / file).is_file():
                    _copy_file(skill.path, target, file)
            _sync_directory(target)
            try:
                target.rename(self.directory / skill.digest)
            except OSError:
                # Another process was faster; its copy has the same contents by name.
                if not (self.directory / skill.digest).is_dir():
                    raise
            _sync_directory(self.directory)
        return True

    def _refresh_extras(self, skill: Skill) -> None:
        """Bring measured figures and README of an unchanged skill up to date."""
        copy = self.directory / skill.digest
        if skill.path == copy:
            return
        for file in _EXTRAS:
            source = skill.path / file
            if file in skill.files or not source.is_file():
                continue
            if (copy / file).is_file() and _same(source, copy / file):
                continue
            with self._scratch() as scratch:
                _copy_file(skill.path, scratch, file)
                (scratch / file).replace(copy / file)

    @contextlib.contextmanager
    def _scratch(self) -> Iterator[Path]:
        """A folder beside the copies, gone afterwards; also sweeps up what a dead process left."""
        self.directory.mkdir(parents=True, exist_ok=True)
        for entry in self.directory.glob(f"{_TEMPORARY}*"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - entry.stat().st_mtime > _ABANDONED_SECONDS:
                    shutil.rmtree(entry, ignore_errors=True)
        scratch = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=self.directory))
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _copy_file(source: Path, target: Path, file: str) -> None:
    with open_inside(source, file) as reader, (target / file).open("xb") as writer:
        shutil.copyfileobj(reader, writer, _BLOCK)
        writer.flush()
        os.fsync(writer.fileno())
    (target / file).chmod(0o444)


def _same(one: Path, other: Path) -> bool:
    return one.stat().st_size == other.stat().st_size and one.read_bytes() == other.read_bytes()


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
