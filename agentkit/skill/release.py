"""Which version of a skill serves which run: releases by share, promotion, rollback.

A skill's versions lie side by side (`NAME/`, `NAME@2/`); workflows and routes know the name alone.
Each run is given one version of every skill and keeps it. Which one is a fixed function of the
release and of a key (the run's id, or what the run is given), so the same key always meets the same
version, on every machine; as the share of a single released version grows, the keys that met it go
on meeting it.
"""

from __future__ import annotations

import fcntl
import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, TypeAlias

from agentkit.errors import InputError
from agentkit.modelfolder import write_json
from agentkit.skill.folder import Skill, check_name
from agentkit.skill.names import split_version
from agentkit.skill.registry import Snapshot
from agentkit.types import Json

By: TypeAlias = Literal["run", "input"]

_FORMAT = 1
_ROUNDING = 1e-9
_DOCUMENT = "$document"


def label(name: str, version: str | None) -> str:
    """How people name a version: its folder's name."""
    return name if version is None else f"{name}@{version}"


@dataclass(frozen=True, slots=True)
class Release:
    """How one skill's runs are shared among its versions; None is the folder without a version."""

    stable: str | None = None
    """Serves every run that no share takes."""
    shares: tuple[tuple[str, float], ...] = ()
    """Version and share of the runs, in the order of their release."""
    by: By = "run"
    """Shares count runs, or (`input`) what runs are given: one document, always one version."""
    before: tuple[str | None, ...] = ()
    """What was stable earlier, oldest first."""

    def __post_init__(self) -> None:
        for version, share in self.shares:
            if not (math.isfinite(share) and 0.0 < share <= 1.0):
                raise InputError(f"a share lies within 0 and 1, not {share}")
            if version == self.stable:
                raise InputError(f"version {version} serves the other runs already")
        total = sum(share for _, share in self.shares)
        if total > 1.0 + _ROUNDING:
            shown = " and ".join(f"{share:g} for {version}" for version, share in self.shares)
            raise InputError(f"the shares add up to {total:g}: {shown}", hint="together at most 1")
        if len({version for version, _ in self.shares}) != len(self.shares):
            raise InputError("a version has two shares")

    def version_of(self, name: str, key: str) -> str | None:
        """The version that serves the key. Shares are stretches of the line from 0 to 1, one after
        another, on which each key has its fixed place."""
        place = _place(name, key)
        end = 0.0
        for version, share in self.shares:
            end += share
            if place < end:
                return version
        return self.stable

    def with_share(self, version: str, share: float, by: By | None = None) -> Release:
        """The release with that share for a version; 0 withdraws it."""
        if not (math.isfinite(share) and 0.0 <= share <= 1.0):
            raise InputError(f"a share lies within 0 and 1, not {share}", where="--share")
        shares = dict(self.shares)
        if share == 0.0:
            shares.pop(version, None)
        else:
            shares[version] = share
        return replace(self, shares=tuple(shares.items()), by=by or self.by)

    def promoted(self, version: str | None) -> Release:
        """All runs get the version; every share ends."""
        if version == self.stable and not self.shares:
            raise InputError("this version serves every run already")
        before = self.before if version == self.stable else (*self.before, self.stable)
        return replace(self, stable=version, shares=(), before=before)

    def rolled_back(self) -> Release:
        """Every share ends; if there is none, what was stable before the last promotion is again.

        Raises `InputError` if there is nothing to take back.
        """
        if self.shares:
            return replace(self, shares=())
        if not self.before:
            raise InputError("there is nothing to take back", hint="no version is released")
        return replace(self, stable=self.before[-1], before=self.before[:-1])


def _place(name: str, key: str) -> float:
    """A fixed place in [0, 1), evenly spread; skills share their places with no other skill."""
    digest = sha256(f"{name}\0{key}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:6], "big") / (1 << 48)


def input_key(inputs: Mapping[str, Json]) -> str:
    """What a run's inputs are known by: its documents' words if it has any, else all of them."""
    documents = sorted(
        str(value[_DOCUMENT])
        for value in inputs.values()
        if isinstance(value, Mapping) and _DOCUMENT in value
    )
    return json.dumps(documents or dict(inputs), sort_keys=True)


# ---------------------------------------------------------------- the file


class ReleaseFile:
    """Stateful: the releases of all skills, in one JSON file, shared by any number of processes.

    Each change reads, checks and writes the file while no other process can; it is written whole or
    not at all.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[str, Release]:
        """The releases by skill; none if there is no file. Raises `InputError` if it is damaged."""
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            if content["version"] != _FORMAT:
                raise ValueError(f"format {content['version']!r}")
            return {str(name): _release(str(name), row) for name, row in content["skills"].items()}
        except FileNotFoundError:
            return {}
        except (
            OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError,
            InputError,
        ) as error:  # fmt: skip
            raise InputError(
                f"the releases cannot be read: {error}",
                where=str(self.path),
                hint="mend the file, or move it away to serve the folders without a version",
            ) from error

    def change(self, name: str, change: Callable[[Release], Release]) -> Release:
        """Change one skill's release and return it. Raises `InputError`; the file stays then."""
        with self._locked():
            releases = self.read()
            try:
                changed = change(releases.get(name, Release()))
            except InputError as error:
                error.where = error.where or f"skill {name}"
                raise
            releases[name] = changed
            kept = {key: one for key, one in releases.items() if one != Release()}
            rows = {key: _row(one) for key, one in kept.items()}
            write_json(self.path, {"version": _FORMAT, "skills": rows})
            return changed

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.with_suffix(".lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _release(name: str, row: Mapping[str, Any]) -> Release:
    check_name(name, "skills")
    shares = tuple((_version(name, version), float(share)) for version, share in row["shares"])
    by: By = "input" if row["by"] == "input" else "run"
    stable = None if row["stable"] is None else _version(name, row["stable"])
    before = tuple(None if one is None else _version(name, one) for one in row["before"])
    return Release(stable, shares, by, before)


def _version(name: str, version: Any) -> str:
    found = split_version(f"{name}@{version}", name)[1]
    if found is None or not isinstance(version, str):
        raise ValueError(f"{version!r} is not a version")
    return found


def _row(release: Release) -> dict[str, Json]:
    return {
        "stable": release.stable,
        "shares": [list(one) for one in release.shares],
        "by": release.by,
        "before": list(release.before),
    }


# ---------------------------------------------------------------- what serves


@dataclass(frozen=True, slots=True)
class Served:
    """The skills of one run."""

    skills: Mapping[str, Skill]
    """By the name that workflows and routes use."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Name to version, of those that come from a folder with a version."""
    notes: tuple[str, ...] = ()
    """Versions that should serve and are not there, and what serves instead."""

    @property
    def digests(self) -> dict[str, str]:
        return {name: skill.digest for name, skill in self.skills.items()}


def served(
    snapshot: Snapshot,
    releases: Mapping[str, Release],
    *,
    run: str | None = None,
    inputs: Mapping[str, Json] | None = None,
) -> Served:
    """What serves a run of that id and inputs; without a run, what is stable.

    Where a version's folder is gone, the stable version serves its share, and where that is gone,
    the folder without a version does.
    """
    skills = dict(snapshot.skills)
    versions: dict[str, str] = {}
    notes: list[str] = []
    for name, release in releases.items():
        own = snapshot.versions.get(name, {})
        wanted: list[str | None] = [release.stable]
        if run is not None:
            key = input_key(inputs or {}) if release.by == "input" else run
            wanted.insert(0, release.version_of(name, key))
        for version in (*dict.fromkeys(wanted), None):
            if version is None:
                break
            if version in own:
                skills[name] = own[version]
                versions[name] = version
                break
            notes.append(_gone(name, version, release))
    for name, release in releases.items():
        own = snapshot.versions.get(name, {})
        missing = [v for v, _ in release.shares if v not in own and run is None]
        notes += [_gone(name, version, release) for version in missing]
    return Served(dict(sorted(skills.items())), versions, tuple(dict.fromkeys(notes)))


def _gone(name: str, version: str, release: Release) -> str:
    instead = release.stable if release.stable != version else None
    return (
        f"{label(name, version)} is released and its folder is not there (or set aside): "
        f"{label(name, instead)} serves instead"
    )


def find(snapshot: Snapshot, name: str) -> Skill:
    """The skill of a folder `NAME` or `NAME@VERSION`. Raises `InputError` if there is none."""
    base, version = split_version(name, name)
    found = (
        snapshot.skills.get(base)
        if version is None
        else snapshot.versions.get(base, {}).get(version)
    )
    if found is None:
        there = [label(base, v) for v in snapshot.versions.get(base, {})]
        there = [*([base] if base in snapshot.skills else []), *there] or list(snapshot.skills)
        raise InputError(
            f"there is no skill {name!r}", hint=f"installed: {', '.join(there) or 'none'}"
        )
    return found
