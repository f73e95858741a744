"""A real, small step runner, and a document store in memory."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence

from agentkit.errors import EngineError, SkillError
from agentkit.types import Citation, Document, Route, StepCall, StepResult, Usage

SKILLS = {"shouter": "d1", "counter": "d2"}


class Documents:
    def __init__(self) -> None:
        self.held: dict[str, Document] = {}

    def put(self, document: Document) -> str:
        self.held[document.digest] = document
        return document.digest

    def get(self, digest: str) -> Document:
        return self.held[digest]


def document(text: str, source: str = "deed.txt") -> Document:
    digest = hashlib.sha256(text.encode()).hexdigest()
    return Document(digest, source, "text/plain", text)


class ShoutingRunner:
    """Answers with its input's text in upper case, or its length; `fail` names texts to fail on.

    A text fails as often as `fail` says, then works. A text that begins with `odd` is one for which
    the controller abstains.
    """

    def __init__(
        self,
        fail: dict[str, int] | None = None,
        error: Callable[[str], Exception] = EngineError,
        before: Callable[[StepCall], None] = lambda call: None,
    ) -> None:
        self.fail = dict(fail or {})
        self.error = error
        self.before = before
        self.batches: list[list[StepCall]] = []
        self.lock = threading.Lock()

    def run(self, calls: Sequence[StepCall]) -> list[StepResult | Exception]:
        with self.lock:
            self.batches.append(list(calls))
        return [self._one(call) for call in calls]

    @property
    def texts(self) -> list[str]:
        return [str(call.input.get("text")) for batch in self.batches for call in batch]

    def _one(self, call: StepCall) -> StepResult | Exception:
        self.before(call)
        text = str(call.input.get("text", ""))
        if self.fail.get(text, 0) > 0:
            self.fail[text] -= 1
            return self.error(f"no answer for {text}")
        if call.skill not in ("auto", "base", *SKILLS):
            return SkillError(f"no skill {call.skill!r}")
        abstained = call.skill == "auto" and text.startswith("odd")
        skill = None if abstained else "shouter" if call.skill == "auto" else call.skill
        needs_human = abstained and call.on_uncertain == "human"
        output = None if needs_human else len(text) if skill == "counter" else text.upper()
        return StepResult(
            step=call.step,
            output=output,
            route=Route(skill, 0.9, abstained, "by name", {"shouter": 0.9, "counter": 0.1}),
            skill=skill,
            digest=SKILLS.get(skill or ""),
            citations=(Citation("c:0-4", "c", 0, 4, "SECRET TEXT", 0.5, "deed.txt"),),
            usage=Usage(3, 1, 0),
            item=call.item,
            needs_human=needs_human,
        )


class StreamingShoutingRunner(ShoutingRunner):
    """Hands out each result as soon as it is ready, the last call's first."""

    def stream(self, calls: Sequence[StepCall]) -> Iterator[tuple[int, StepResult | Exception]]:
        with self.lock:
            self.batches.append(list(calls))
        for place in reversed(range(len(calls))):
            yield place, self._one(calls[place])
