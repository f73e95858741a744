"""Which skills there are: folders on disk as one immutable snapshot, swapped whole."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias

from agentkit.errors import AgentkitError, SkillError
from agentkit.skill.folder import MAX_ENTRIES, Skill, check_name, is_skill_folder, load_skill
from agentkit.skill.names import split_version, version_key
from agentkit.skill.store import SkillStore

Signature: TypeAlias = tuple[tuple[str, int, int, int, int, int], ...]
"""Name, inode, mode, size, mtime and ctime of each file: equal means unchanged."""

SETTLE_SECONDS = 0.25
"""A folder that changed less than this ago may still be written to; the watcher waits."""
RESCAN_SECONDS = 5.0
"""The watcher looks for itself this often, where the file system sends no events."""
_CLOCK_TICK_SECONDS = 0.05
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The skills at one moment."""

    skills: Mapping[str, Skill] = field(default_factory=lambda: MappingProxyType({}))
    """By name, sorted; each points at its copy in the store."""
    rejected: Mapping[Path, str] = field(default_factory=lambda: MappingProxyType({}))
    """Folders that failed a check, with the reason."""
    notes: tuple[str, ...] = ()
    """What a user should know: a name given twice, an older version that goes on being served."""
    versions: Mapping[str, Mapping[str, Skill]] = field(
        default_factory=lambda: MappingProxyType({})
    )
    """The skills of folders called `NAME@VERSION`, by name and version. None of them is served
    until it is released (see `agentkit.skill.release`)."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """What is known of one folder; `skill` and `reason` both, if an older version is served."""

    signature: Signature | None
    skill: Skill | None = None
    reason: str | None = None


class Registry:
    """Stateful: the current snapshot of some folders of skills. Safe to use from any thread.

    A folder of skills holds one skill folder per skill; a skill folder itself may be given too.
    Where two hold the same name, the later wins. A folder `NAME@VERSION` is another version of the
    skill `NAME`.

    - A folder that fails a check is set aside with its reason, and the others go on.
    - If it was served before, what was served goes on, and a note says so.
    - A folder that is gone is no longer listed.

    `check` is called with each new copy, and raises `SkillError` to refuse it: this is how the
    adapter's weights are checked from here.
    """

    def __init__(
        self,
        folders: Sequence[Path],
        store: SkillStore,
        *,
        check: Callable[[Skill], None] | None = None,
    ) -> None:
        self.folders = tuple(folder.absolute() for folder in folders)
        self.store = store
        self._check = check
        self._snapshot = Snapshot()
        self._entries: dict[Path, _Entry] = {}
        self._callbacks: list[Callable[[Snapshot], None]] = []
        self._lock = threading.RLock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.reload()

    @property
    def snapshot(self) -> Snapshot:
        return self._snapshot

    def reload(self) -> Snapshot:
        """Read what changed, swap the snapshot, tell the subscribers if it differs; returns it.

        Raises `SkillError` if a folder of skills itself cannot be read; the old snapshot stays.
        """
        return self._reload(settle=0.0)[0]

    def subscribe(self, callback: Callable[[Snapshot], None]) -> Callable[[], None]:
        """Call back with every new snapshot; returns what ends it.

        The call comes in the thread that reloads, while no other can: it should be quick, and must
        neither raise nor wait for a reload elsewhere.
        """
        with self._lock:
            self._callbacks.append(callback)

        def unsubscribe() -> None:
            with self._lock:
                if callback in self._callbacks:
                    self._callbacks.remove(callback)

        return unsubscribe

    def watch(self) -> None:
        """Follow the folders in a daemon thread until `close`; a second call changes nothing.

        A complete folder is listed within a second of its last change.
        """
        with self._lock:
            if self._thread is None:
                self._stop.clear()
                self._thread = threading.Thread(
                    target=self._watch, name="agentkit-registry", daemon=True
                )
                self._thread.start()

    def close(self) -> None:
        """Stop watching; the snapshot stays."""
        with self._lock:
            thread, self._thread = self._thread, None
        self._stop.set()
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def __enter__(self) -> Registry:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _reload(self, settle: float) -> tuple[Snapshot, bool]:
        """The new snapshot, and whether a folder was left for later because it still changes."""
        with self._lock:
            entries: dict[Path, _Entry] = {}
            unsettled = False
            for path in self._skill_folders():
                entry = self._entry(path, self._entries.get(path), settle)
                if entry is None:
                    unsettled = True
                else:
                    entries[path] = entry
                    unsettled = unsettled or entry.signature is None
            new = _merge(entries)
            changed = new != self._snapshot
            self._entries = entries
            self._snapshot = new
            callbacks = tuple(self._callbacks) if changed else ()
            for callback in callbacks:
                callback(new)
            return new, unsettled

    def _skill_folders(self) -> list[Path]:
        found: list[Path] = []
        for folder in self.folders:
            if is_skill_folder(folder):
                found.append(folder)
                continue
            try:
                with os.scandir(folder) as listing:
                    children = sorted(
                        Path(child.path)
                        for child in listing
                        if not child.name.startswith(".") and child.is_dir()
                    )
            except OSError as cause:
                raise SkillError(
                    f"this folder of skills cannot be read: {cause.strerror}", where=str(folder)
                ) from cause
            if _same(folder, self.store.directory):  # where served copies are named by digest
                children = [child for child in children if not _DIGEST.fullmatch(child.name)]
            found.extend(child for child in children if is_skill_folder(child))
        return list(dict.fromkeys(found))

    def _entry(self, path: Path, old: _Entry | None, settle: float) -> _Entry | None:
        now = time.time()
        try:
            signature = _signature(path)
        except OSError:
            return None  # it is being moved or removed at this very moment
        if old is not None and old.signature == signature:
            return old
        age = now - max((max(stamps[-2:]) for stamps in signature), default=0) / 1e9
        if 0 <= age < settle:
            return old if old is None else _Entry(None, old.skill, old.reason)
        # A change within one tick of the file system's clock would leave the signature as it is.
        kept = signature if not 0 <= age < _CLOCK_TICK_SECONDS else None
        before = old.skill if old is not None else None
        try:
            skill = self._admit(path, before)
        except AgentkitError as error:
            return _Entry(kept, before, str(error))
        except OSError as error:
            return _Entry(None, before, f"{path}: cannot be read: {error.strerror or error}")
        except Exception as error:  # noqa: BLE001 -- one folder must not cost the others
            return _Entry(kept, before, f"{path}: {type(error).__name__}: {error}")
        return _Entry(kept, skill)

    def _admit(self, path: Path, before: Skill | None) -> Skill:
        check_name(split_version(path.name, str(path))[0], str(path))
        if path.is_symlink() and not path.resolve().is_relative_to(path.parent.resolve()):
            raise SkillError(
                "a link that leaves the folder of skills",
                where=str(path),
                hint="copy the skill, or give its own folder with --skills",
            )
        skill = self.store.admit(load_skill(path))
        if self._check is not None and (before is None or before.digest != skill.digest):
            self._check(skill)
        return skill

    def _watch(self) -> None:
        # Imported here: it is a compiled extension that only a watching process needs.
        from watchfiles import watch

        while not self._stop.is_set():
            existing = [folder for folder in self.folders if folder.is_dir()]
            if not existing:
                self._stop.wait(SETTLE_SECONDS)
                self._reload_and_note()
                continue
            events = watch(
                *existing,
                watch_filter=None,
                debounce=200,
                step=50,
                stop_event=self._stop,
                rust_timeout=int(1000 * SETTLE_SECONDS),
                yield_on_timeout=True,
                raise_interrupt=False,
            )
            try:
                self._follow(events, existing)
            except (OSError, RuntimeError):
                # No events to be had (too many watches, or the folder just vanished): look instead.
                self._reload_and_note()
                self._stop.wait(SETTLE_SECONDS)

    def _follow(self, events: Iterable[object], existing: list[Path]) -> None:
        """Reload on events, while a folder settles, and now and then; ends with the folders."""
        settling = True  # what changed before the first event counts too
        last = time.monotonic()
        for changes in events:
            if changes or settling or time.monotonic() - last > RESCAN_SECONDS:
                settling = self._reload_and_note()
                last = time.monotonic()
                if existing != [folder for folder in self.folders if folder.is_dir()]:
                    return

    def _reload_and_note(self) -> bool:
        """Reload for the watcher, which must live on; returns whether to look again soon."""
        try:
            return self._reload(settle=SETTLE_SECONDS)[1]
        except Exception as error:  # noqa: BLE001 -- it is told, and the thread lives on
            old = self._snapshot
            note = f"reload failed, the skills served before go on: {error}"
            if note not in old.notes:
                self._snapshot = replace(old, notes=(*old.notes, note))
            return False


def _same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()


def default_folders(extra: Sequence[Path] = ()) -> tuple[Path, ...]:
    """Folders of skills, the later winning: the shipped ones, `./skills`, then `extra`.

    Raises `SkillError` if one of `extra` does not exist.
    """
    found: dict[Path, Path] = {}
    shipped = shipped_folder()
    candidates = [*([shipped] if shipped else []), Path.cwd() / "skills"]
    for folder in candidates:
        if folder.is_dir():
            found.setdefault(folder.resolve(), folder)
    for folder in extra:
        if not folder.is_dir():
            raise SkillError(
                "no such folder",
                where=str(folder),
                hint="--skills takes a folder that holds skill folders",
            )
        resolved = folder.resolve()
        found.pop(resolved, None)
        found[resolved] = folder.absolute()
    return tuple(found.values())


def shipped_folder() -> Path | None:
    """The skills that come with this package: inside it, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    packaged = package / "_shipped" / "skills"
    if packaged.is_dir():
        return packaged
    checkout = package.parent
    if (checkout / "pyproject.toml").is_file() and (checkout / "skills").is_dir():
        return checkout / "skills"
    return None


def _signature(folder: Path) -> Signature:
    """Raises `OSError` if a file vanishes meanwhile."""
    rows = []
    for root, directories, names in os.walk(folder):
        for entry in (*directories, *names):
            path = Path(root, entry)
            status = path.stat() if path.exists() else path.lstat()
            stamps = (status.st_ino, status.st_mode, status.st_size)
            times = (status.st_mtime_ns, status.st_ctime_ns)
            rows.append((path.relative_to(folder).as_posix(), *stamps, *times))
        if len(rows) > MAX_ENTRIES:
            break  # it is refused for that alone
    return tuple(sorted(rows))


def _merge(entries: Mapping[Path, _Entry]) -> Snapshot:
    found: dict[str, Skill] = {}
    sources: dict[str, Path] = {}
    rejected: dict[Path, str] = {}
    notes: list[str] = []
    for path, entry in entries.items():
        label = path.name  # NAME, or NAME@VERSION
        if entry.reason is not None:
            rejected[path] = entry.reason
        if entry.skill is None:
            if entry.reason is not None and label in found:
                notes.append(f"{label}: {path} is set aside, {sources[label]} is used instead")
            continue
        if label in found:
            notes.append(f"{label}: {path} is used instead of {sources[label]}")
        found[label] = entry.skill
        sources[label] = path
        if entry.reason is not None:
            notes.append(
                f"{label}: {path} is set aside; the version {entry.skill.digest[:12]} "
                "that was served before goes on"
            )
    skills: dict[str, Skill] = {}
    versions: dict[str, dict[str, Skill]] = {}
    for label, skill in found.items():
        _, version = split_version(label, str(sources[label]))
        if version is None:
            skills[skill.name] = skill
        else:
            versions.setdefault(skill.name, {})[version] = skill
    notes += [
        f"{name}: there is no folder {name!r} beside its versions, so nothing serves it until one "
        "of them is promoted"
        for name in versions
        if name not in skills
    ]
    return Snapshot(
        MappingProxyType(dict(sorted(skills.items()))),
        MappingProxyType(rejected),
        tuple(notes),
        MappingProxyType(
            {
                name: MappingProxyType({v: own[v] for v in sorted(own, key=version_key)})
                for name, own in sorted(versions.items())
            }
        ),
    )
