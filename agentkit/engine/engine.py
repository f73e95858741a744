"""One loop per model: takes requests from any thread, owns the activation, answers by futures."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from queue import Empty, SimpleQueue
from threading import Event, Lock, Semaphore, Thread, current_thread
from types import TracebackType
from typing import Any, TypeAlias, TypeVar

from agentkit import models
from agentkit.engine.activation import Slots
from agentkit.engine.backbone import Backbone, SharedTokenizer, load_backbone
from agentkit.engine.decoding import Grammars
from agentkit.engine.install import Gate, LoadedSkill, prepare
from agentkit.engine.job import Job, make_job
from agentkit.engine.prefix import PrefixCache, PrefixStatistics
from agentkit.engine.residency import Residents, SkillStatistics
from agentkit.engine.runner import Runner
from agentkit.engine.scheduler import TreeKey, admitted
from agentkit.engine.streaming import TextStream, outcome_of
from agentkit.errors import AgentkitError, EngineError, LimitError
from agentkit.prompt import Frame, encode_prompt, frame_of
from agentkit.settings import Settings
from agentkit.skill.folder import Skill
from agentkit.threads import in_own_thread
from agentkit.types import Completion, EncodedPrompt, Prompt, Request

__all__ = ["Engine", "TextStream", "outcome_of"]

_log = logging.getLogger(__name__)
_REST = 0.25
"""Seconds without work after which the loop's thread ends, and with it its native threads, which
would slow down all that others compute (see `agentkit.threads`). The next request starts it."""
_Value = TypeVar("_Value")


class _Task:
    """Something for the loop to do between steps, once it may be done."""

    def __init__(self, work: Callable[[], Any], may: Callable[[], bool]) -> None:
        self.work = work
        self.may = may
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
        self._gate = in_own_thread(lambda: Gate(backbone, self._slots))
        self._residents = Residents(
            self._settings.adapter_memory_bytes, self._install, self._remove
        )
        self._queue: SimpleQueue[_Item] = SimpleQueue()
        self._room = Semaphore(self._settings.max_waiting)
        self._closed = Event()
        self._submitting = Lock()
        self._runner = Runner(
            backbone,
            self._slots,
            self._prefixes,
            self._closed.is_set,
            lambda: [skill.lowest_layer for skill in self._residents.loaded.values()],
        )
        self._thread: Thread | None = None

    @classmethod
    def open(cls, settings: Settings, progress: models.Progress | None = None) -> Engine:
        """An engine for `settings.backbone`, fetched if need be.

        Raises `ModelError`, and `InputError` for a device that is not here.
        """
        folder = models.resolve(settings.backbone, settings, "backbone", progress)
        backbone = in_own_thread(
            lambda: load_backbone(
                folder, dtype=settings.dtype, device=settings.device, threads=settings.threads
            )
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
            self._room.release(self._settings.max_waiting)  # whoever waits for room gets its error
            thread = self._thread
        if thread is not None and current_thread() is not thread:
            thread.join()

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
        """The skills in memory now, by digest; a snapshot."""
        return self._residents.loaded

    @property
    def skill_statistics(self) -> SkillStatistics:
        return self._residents.statistics()

    def load(self, skill: Skill) -> None:
        """Make a skill ready to be asked for by its digest; nothing happens if it is.

        Loads are serialised, and a skill is served whole or not at all: on `AdapterError` the
        engine is as it was before, and other requests go on. Above `adapter_memory_bytes` the
        least recently used skill that no request holds leaves memory; asked for again, it is
        brought back from its folder.
        """
        self._may_load(skill.digest)
        self._residents.add(skill)

    def unload(self, digest: str) -> None:
        """Take a skill out and forget its prefixes; nothing happens if it is not loaded.

        Answers under way are finished first; requests that still wait fail.
        """
        if current_thread() is self._thread:
            raise _within_loop()
        self._residents.forget(digest)
        self._between_steps(lambda: self._prefixes.drop(digest))

    def _may_load(self, digest: str) -> None:
        """The loop cannot wait for a load, which waits for the loop."""
        if current_thread() is self._thread and digest not in self._residents.loaded:
            raise _within_loop()

    def _install(self, skill: Skill) -> LoadedSkill:
        prepared = in_own_thread(lambda: prepare(skill, self._backbone))
        installed = self._between_steps(lambda: self._gate.install(prepared))
        if installed.fingerprint == "unknown":
            _log.warning("skill %s does not say which backbone it was trained on", installed.name)
        return installed

    def _remove(self, skill: LoadedSkill) -> None:
        self._between_steps(
            lambda: self._slots.empty(skill.slot), lambda: not self._runner.uses(skill.slot)
        )

    def _between_steps(
        self, work: Callable[[], _Value], may: Callable[[], bool] = lambda: True
    ) -> _Value:
        if current_thread() is self._thread:
            raise _within_loop()
        task = _Task(work, may)
        self._put(task)
        value: _Value = task.future.result()
        return value

    # ------------------------------------------------------------ requests

    def submit(self, request: Request, *, timeout: float | None = None) -> Future[Completion]:
        """Ask for a completion; every error comes through the future.

        Cancelling the future stops the work at the next token. `asyncio.wrap_future` makes it
        awaitable. `timeout` is as in `submit_all`.
        """
        return self.submit_all([request], timeout=timeout)[0]

    def run(self, requests: Sequence[Request]) -> list[Completion | Exception]:
        """Completions in the order of the requests, batched; an error stands in its own place."""
        return [outcome_of(future) for future in self.submit_all(requests)]

    def stream(self, request: Request) -> TextStream:
        """The text of an answer, piece by piece; `close()` on the iterator stops the answer."""
        return TextStream(self.submit, request)

    def submit_all(
        self, requests: Sequence[Request], *, timeout: float | None = None
    ) -> list[Future[Completion]]:
        """Like `submit`, for requests that may be computed together.

        At most `max_waiting` requests wait in the engine. Where that many do, this blocks until
        there is room; after `timeout` seconds (0: at once) a request that found none fails with
        `LimitError`.
        """
        futures: list[Future[Completion]] = []
        batch: list[Job] = []
        for request in requests:
            try:
                job = self._job(request)
            except AgentkitError as error:
                futures.append(Future())
                futures[-1].set_exception(error)
                continue
            futures.append(job.future)
            if not self._room.acquire(blocking=False):
                self._put_jobs(batch)  # so that what this call brought before makes room
                batch = []
                if not self._wait_for_room(timeout):
                    job.fail(
                        LimitError(
                            f"{self._settings.max_waiting} requests wait already",
                            hint="ask again later, or raise max_waiting",
                        )
                    )
                    continue
            batch.append(job)
        self._put_jobs(batch)
        return futures

    def _job(self, request: Request) -> Job:
        if request.adapter is None:
            return make_job(request, None, self._backbone, self._grammars)
        self._may_load(request.adapter)
        skill = self._residents.hold(request.adapter)
        try:
            job = make_job(request, skill, self._backbone, self._grammars)
        except BaseException:
            self._residents.release(skill.digest)
            raise
        job.future.add_done_callback(lambda _: self._residents.release(skill.digest))
        return job

    def _wait_for_room(self, timeout: float | None) -> bool:
        if current_thread() is self._thread:  # it would wait for itself
            return False
        return self._room.acquire(timeout=timeout)

    def _put_jobs(self, jobs: Sequence[Job]) -> None:
        if not jobs:
            return
        # All that is asked of one text, then all that is asked of the next.
        turns: dict[TreeKey, int] = {}
        jobs = sorted(jobs, key=lambda job: turns.setdefault(job.key, len(turns)))
        try:
            self._put(jobs)
        except EngineError as error:
            for job in jobs:
                job.fail(error)

    def _put(self, item: Sequence[Job] | _Task) -> None:
        with self._submitting:
            if self._closed.is_set():
                raise EngineError("the engine is closed")
            self._queue.put(item)
            if self._thread is None:
                self._thread = Thread(target=self._loop, name="agentkit-engine", daemon=True)
                self._thread.start()

    # ------------------------------------------------------------ the loop

    def _loop(self) -> None:
        pending: list[Job] = []
        tasks: list[_Task] = []
        while self._take(pending, tasks):
            if not (pending or tasks or not self._runner.idle) and self._rests():
                return
            tasks = [task for task in tasks if not _done(task)]
            pending = [job for job in pending if self._still_wanted(job)]
            for job in self._join(pending):
                pending.remove(job)
                self._room.release()
            self._runner.step()
        self._runner.step()  # it sees that the engine is closed
        for job in pending:
            job.fail(EngineError("the engine was closed"))
        for task in tasks:
            task.future.set_exception(EngineError("the engine was closed"))

    def _take(self, pending: list[Job], tasks: list[_Task]) -> bool:
        """Move what is queued into `pending` and `tasks`; False at the end.

        Waits a little if there is nothing to do.
        """
        while True:
            idle = not (pending or tasks) and self._runner.idle
            try:
                item = self._queue.get(block=idle, timeout=_REST)
            except Empty:
                return True
            if item is None:
                return False
            if isinstance(item, _Task):
                tasks.append(item)
            else:
                pending.extend(item)

    def _rests(self) -> bool:
        """End the loop's thread, unless something has just come in."""
        with self._submitting:
            if self._queue.empty():
                self._thread = None
                return True
        return False

    def _join(self, pending: list[Job]) -> list[Job]:
        """Let the runner take those of the waiting jobs whose turn it is; gives them."""
        chosen = admitted(
            [job.waiting for job in pending],
            rows=self._settings.max_batch - self._runner.rows,
            opened=self._runner.opened,
            reading=self._runner.reading,
        )
        joining = [pending[index] for index in chosen]
        for index, job in enumerate(pending[: chosen[-1]] if chosen else ()):
            younger = sum(other > index for other in chosen)
            job.waiting = replace(job.waiting, passed=job.waiting.passed + younger)
        self._runner.admit(joining)
        return joining

    def _still_wanted(self, job: Job) -> bool:
        if not job.withdrawn and job.skill is not None and not self._residents.has(job.skill):
            job.fail(EngineError(f"skill {job.skill.name} was unloaded before its turn"))
        if job.future.done():
            self._room.release()
            return False
        return True


def _done(task: _Task) -> bool:
    """Do a task if it may be done now."""
    if not task.may():
        return False
    task.run()
    return True


def _within_loop() -> EngineError:
    return EngineError("skills cannot be loaded or unloaded from an on_text callback")
