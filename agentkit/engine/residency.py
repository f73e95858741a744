"""Which skills are in memory: as many as a byte budget holds, the others brought back on demand."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from threading import Lock, RLock

from agentkit.engine.install import LoadedSkill
from agentkit.errors import EngineError
from agentkit.skill.folder import Skill


@dataclass(frozen=True, slots=True)
class SkillStatistics:
    """What the memory for adapters holds, and what happened there."""

    known: int = 0
    """Skills that may be asked for."""
    loaded: int = 0
    """Those of them in memory."""
    bytes: int = 0
    budget: int = 0
    loads: int = 0
    evictions: int = 0


class Residents:
    """Stateful: the skills in memory, the least recently used dropped above the byte budget.

    Safe for threads: loads are serialised, and a skill is there whole or not at all. One that a
    request holds is never dropped, even if the budget is exceeded meanwhile.
    """

    def __init__(
        self,
        budget: int,
        load: Callable[[Skill], LoadedSkill],
        remove: Callable[[LoadedSkill], None],
    ) -> None:
        self._budget = budget
        self._load = load
        self._remove = remove
        self._loading = RLock()
        self._changing = Lock()
        self._known: dict[str, Skill] = {}
        self._loaded: OrderedDict[str, LoadedSkill] = OrderedDict()
        self._holders: Counter[str] = Counter()
        self._bytes = self._loads = self._evictions = 0

    @property
    def loaded(self) -> Mapping[str, LoadedSkill]:
        """The skills in memory now, by digest; a snapshot."""
        with self._changing:
            return dict(self._loaded)

    def has(self, skill: LoadedSkill) -> bool:
        """Whether this very loading of a skill is in memory."""
        return self._loaded.get(skill.digest) is skill

    def add(self, skill: Skill) -> None:
        """Make a skill known and bring it into memory. Raises what loading it raises."""
        if not self._touched(skill.digest):
            with self._loading:
                self._bring(skill)

    def hold(self, digest: str) -> LoadedSkill:
        """A known skill, in memory until it is released as often as it was held.

        Raises `EngineError` for one that is not known, and what loading it raises.
        """
        with self._changing:
            loaded = self._held(digest)
        if loaded is not None:
            return loaded
        with self._loading:
            skill = self._known.get(digest)
            if skill is None:
                raise EngineError(
                    f"no skill with digest {digest[:12]} is loaded",
                    hint="load the skill before asking for it",
                )
            self._bring(skill)
            with self._changing:
                loaded = self._held(digest)
        if loaded is None:
            raise EngineError(f"skill {skill.name} was unloaded meanwhile")
        return loaded

    def release(self, digest: str) -> None:
        """Undo one `hold`."""
        with self._changing:
            self._holders[digest] -= 1

    def forget(self, digest: str) -> None:
        """Take a skill out of memory and forget it; nothing happens if it is not known."""
        with self._loading:
            self._known.pop(digest, None)
            with self._changing:
                loaded = self._loaded.pop(digest, None)
                self._bytes -= loaded.nbytes if loaded else 0
            if loaded is not None:
                self._remove(loaded)

    def statistics(self) -> SkillStatistics:
        with self._changing:
            return SkillStatistics(
                known=len(self._known),
                loaded=len(self._loaded),
                bytes=self._bytes,
                budget=self._budget,
                loads=self._loads,
                evictions=self._evictions,
            )

    def _bring(self, skill: Skill) -> None:
        if self._touched(skill.digest):
            return
        loaded = self._load(skill)
        with self._changing:
            self._known[skill.digest] = skill
            self._loaded[skill.digest] = loaded
            self._bytes += loaded.nbytes
            self._loads += 1
            dropped = self._over_budget(skill.digest)
        for one in dropped:
            self._remove(one)

    def _over_budget(self, newest: str) -> list[LoadedSkill]:
        dropped = []
        for digest in list(self._loaded):
            if self._bytes <= self._budget:
                break
            if digest != newest and not self._holders[digest]:
                dropped.append(self._loaded.pop(digest))
                self._bytes -= dropped[-1].nbytes
                self._evictions += 1
        return dropped

    def _touched(self, digest: str) -> bool:
        with self._changing:
            if digest not in self._loaded:
                return False
            self._loaded.move_to_end(digest)
            return True

    def _held(self, digest: str) -> LoadedSkill | None:
        loaded = self._loaded.get(digest)
        if loaded is not None:
            self._loaded.move_to_end(digest)
            self._holders[digest] += 1
        return loaded
