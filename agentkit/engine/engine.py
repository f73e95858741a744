"""One loop per model: takes requests from any thread, owns the activation, answers by futures."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError as FutureCancelled
from concurrent.futures import Future
from dataclasses import replace
from queue import Empty, SimpleQueue
from threading import Event, Lock, Thread, current_thread
from types import TracebackType
from typing import Any, TypeAlias, TypeVar

from agentkit import models
from agentkit.engine.activation import Slots
from agentkit.engine.backbone import Backbone, SharedTokenizer, load_backbone
from agentkit.engine.decoding import Grammars
from agentkit.engine.install import Gate, LoadedSkill, prepare
from agentkit.engine.job import Job, make_job
from agentkit.engine.prefix import PrefixCache, PrefixStatistics
from agentkit.engine.runner import Runner
from agentkit.engine.scheduler import next_group
from agentkit.errors import AgentkitError, CancelledError, EngineError
from agentkit.prompt import Frame, encode_prompt, frame_of
from agentkit.settings import Settings
from agentkit.skill.folder import Skill
from agentkit.types import Completion, EncodedPrompt, Prompt, Request

_log = logging.getLogger(__name__)
_Value = TypeVar("_Value")


class _Task:
    """Something for the loop to do between groups."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self.work = work
        self.future: Future[Any] = Future()

    def run(self) -> None:
        try:
            self.future.set_result(self.work())
        except BaseException as error:  # noqa: BLE001 -- it is raised where the future is waited for
            self.future.set_exception(error)


_Item: TypeAlias = "Sequence[Job] | _Task | None"


class Engine:
    """Stateful: one backbone in memory, the skills loaded onto it, and the loop that serves them.

    Every method may be called from any thread. A request names the skill that it wants by digest
    and is answered with that one, whatever other threads ask for meanwhile.
    """

    def __init__(self, backbone: Backbone, *, settings: Settings | None = None) -> None:
        self._backbone = backbone
        self._settings = settings or Settings()
        self._frame = frame_of(backbone.tokenizer)
        self._slots = Slots(backbone.modules)
        self._prefixes = PrefixCache(self._settings.prefix_cache_bytes)
        self._grammars = Grammars(backbone)
        self._gate = Gate(backbone, self._slots)
        self._skills: Mapping[str, LoadedSkill] = {}  # replaced, never changed: reads need no lock
        self._loading = Lock()
        self._queue: SimpleQueue[_Item] = SimpleQueue()
        self._closed = Event()
        self._submitting = Lock()
        self._runner = Runner(backbone, self._slots, self._prefixes, self._closed.is_set)
        self._thread = Thread(target=self._loop, name="agentkit-engine", daemon=True)
        self._thread.start()

    @classmethod
    def open(cls, settings: Settings, progress: models.Progress | None = None) -> Engine:
        """An engine for `settings.backbone`, fetched if need be. Raises `ModelError`."""
        folder = models.resolve(settings.backbone, settings, "backbone", progress)
        backbone = load_backbone(
            folder, dtype=settings.dtype, device=settings.device, threads=settings.threads
        )
        return cls(backbone, settings=settings)

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the loop; what is unanswered gets an `EngineError`."""
        with self._submitting:
            if self._closed.is_set():
                return
            self._closed.set()
            self._queue.put(None)
        if current_thread() is not self._thread:
            self._thread.join()

    # ------------------------------------------------------------ what the backbone is

    @property
    def backbone(self) -> Backbone:
        return self._backbone

    @property
    def fingerprint(self) -> str:
        """Of the backbone's source tensors."""
        return self._backbone.fingerprint

    @property
    def frame(self) -> Frame:
        """What the backbone's chat template puts around the words of a prompt."""
        return self._frame

    @property
    def tokenizer(self) -> SharedTokenizer:
        """The backbone's, safe to share between threads."""
        return self._backbone.tokenizer

    @property
    def context(self) -> int:
        """Tokens that prompt and answer may have together."""
        return self._backbone.context

    @property
    def prefix_statistics(self) -> PrefixStatistics:
        return self._prefixes.statistics()

    def encode(self, prompt: Prompt) -> EncodedPrompt:
        """Token ids of a prompt; `LimitError` if they exceed the context."""
        return encode_prompt(self.tokenizer, prompt, max_tokens=self._backbone.context)

    def count_tokens(self, text: str) -> int:
        """Tokens of a text that stands by itself."""
        return len(self.tokenizer.plain(text))

    # ------------------------------------------------------------ skills

    @property
    def loaded(self) -> Mapping[str, LoadedSkill]:
        """The skills served now, by digest; a snapshot."""
        return self._skills

    def load(self, skill: Skill) -> None:
        """Make a skill ready to be asked for by its digest; nothing happens if it is.

        Loads are serialised, and a skill is served whole or not at all: on `AdapterError` the
        engine is as it was before, and other requests go on.
        """
        with self._loading:
            if skill.digest in self._skills:
                return
            prepared = prepare(skill, self._backbone)
            installed = self._between_groups(lambda: self._gate.install(prepared))
            if installed.fingerprint == "unknown":
                _log.warning(
                    "skill %s does not say which backbone it was trained on", installed.name
                )
            self._skills = {**self._skills, skill.digest: installed}

    def unload(self, digest: str) -> None:
        """Take a skill out and forget its prefixes; nothing happens if it is not loaded."""
        with self._loading:
            skill = self._skills.get(digest)
            if skill is None:
                return
            self._skills = {key: value for key, value in self._skills.items() if key != digest}
            slot = skill.slot

            def remove() -> None:
                self._slots.empty(slot)
                self._prefixes.drop(digest)

            self._between_groups(remove)

    def _between_groups(self, work: Callable[[], _Value]) -> _Value:
        if current_thread() is self._thread:
            raise EngineError("skills cannot be loaded or unloaded from an on_text callback")
        task = _Task(work)
        self._put(task)
        value: _Value = task.future.result()
        return value

    # ------------------------------------------------------------ requests

    def submit(self, request: Request) -> Future[Completion]:
        """Ask for a completion; every error comes through the future.

        Cancelling the future stops the work at the next token.
        """
        return self.submit_all([request])[0]

    def run(self, requests: Sequence[Request]) -> list[Completion | Exception]:
        """Completions in the order of the requests, batched; an error stands in its own place."""
        return [outcome_of(future) for future in self.submit_all(requests)]

    def stream(self, request: Request) -> TextStream:
        """The text of an answer, piece by piece; `close()` on the iterator stops the answer."""
        return TextStream(self, request)

    def submit_all(self, requests: Sequence[Request]) -> list[Future[Completion]]:
        """Like `submit`, for requests that may be computed together."""
        futures: list[Future[Completion]] = []
        jobs = []
        for request in requests:
            try:
                job = make_job(request, self._skill_of(request), self._backbone, self._grammars)
            except AgentkitError as error:
                futures.append(Future())
                futures[-1].set_exception(error)
                continue
            futures.append(job.future)
            jobs.append(job)
        if jobs:
            try:
                self._put(jobs)
            except EngineError as error:
                for job in jobs:
                    job.fail(error)
        return futures

    def _skill_of(self, request: Request) -> LoadedSkill | None:
        if request.adapter is None:
            return None
        skill = self._skills.get(request.adapter)
        if skill is None:
            raise EngineError(
                f"no skill with digest {request.adapter[:12]} is loaded",
                hint="load the skill before asking for it",
            )
        return skill

    def _put(self, item: Sequence[Job] | _Task) -> None:
        with self._submitting:
            if self._closed.is_set():
                raise EngineError("the engine is closed")
            self._queue.put(item)

    # ------------------------------------------------------------ the loop

    def _loop(self) -> None:
        pending: list[Job] = []
        while self._take(pending):
            chosen = next_group([job.waiting for job in pending], max_rows=self._settings.max_batch)
            group = [pending[index] for index in chosen]
            taken = set(chosen)
            pending = [job for index, job in enumerate(pending) if index not in taken]
            self._runner.run([job for job in group if self._still_loaded(job)])
        for job in pending:
            job.fail(EngineError("the engine was closed"))

    def _take(self, pending: list[Job]) -> bool:
        """Move what is queued into `pending`, waiting if there is nothing to do; False at the end.

        Tasks are done on the way: nothing is being computed then.
        """
        while True:
            try:
                item = self._queue.get(block=not pending)
            except Empty:
                return True
            if item is None:
                return False
            if isinstance(item, _Task):
                item.run()
            else:
                pending.extend(item)

    def _still_loaded(self, job: Job) -> bool:
        if job.skill is None or self._skills.get(job.skill.digest) is job.skill:
            return True
        job.fail(EngineError(f"skill {job.skill.name} was unloaded before its turn"))
        return False


class TextStream(Iterator[str]):
    """Stateful: the pieces of one answer as they are written."""

    def __init__(self, engine: Engine, request: Request) -> None:
        self._pieces: SimpleQueue[str | None] = SimpleQueue()
        also = request.on_text

        def on_text(piece: str) -> None:
            self._pieces.put(piece)
            if also is not None:
                also(piece)

        self._future = engine.submit(replace(request, on_text=on_text))
        self._future.add_done_callback(lambda _: self._pieces.put(None))

    def __next__(self) -> str:
        piece = self._pieces.get()
        if piece is not None and not self._future.cancelled():
            return piece
        self._pieces.put(None)  # so that asking again ends again
        if not self._future.cancelled():
            self._future.result()  # raises what went wrong
        raise StopIteration

    def __enter__(self) -> TextStream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the answer; nothing happens if it is complete."""
        self._future.cancel()

    def completion(self) -> Completion:
        """The whole answer, once it is there; raises what went wrong."""
        outcome = outcome_of(self._future)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


def outcome_of(future: Future[Completion]) -> Completion | Exception:
    """What a future holds, once it does: its completion, or its error as agentkit's own."""
    try:
        error = future.exception()
    except FutureCancelled as cause:
        cancelled = CancelledError("the request was withdrawn")
        cancelled.__cause__ = cause
        return cancelled
    if error is None:
        return future.result()
    if isinstance(error, Exception):
        return error
    raise error
