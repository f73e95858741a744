"""Answers as they come: the text of one piece by piece, and what a future holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError as FutureCancelled
from concurrent.futures import Future
from dataclasses import replace
from queue import SimpleQueue
from types import TracebackType

from agentkit.errors import CancelledError
from agentkit.types import Completion, Request


class TextStream(Iterator[str]):
    """Stateful: the pieces of one answer as they are written."""

    def __init__(self, submit: Callable[[Request], Future[Completion]], request: Request) -> None:
        self._pieces: SimpleQueue[str | None] = SimpleQueue()
        also = request.on_text

        def on_text(piece: str) -> None:
            self._pieces.put(piece)
            if also is not None:
                also(piece)

        self._future = submit(replace(request, on_text=on_text))
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
