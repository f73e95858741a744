"""Tokens to text, piece by piece: never half a character, never a part of a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

from agentkit.engine.backbone import SharedTokenizer

_HALF = "\ufffd"


class Detokenizer:
    """Stateful: the text of one answer as it grows.

    A token's text may depend on the one before it, so text is taken as the difference of two
    decodings (as text-generation-inference does it), and held back while it ends within a
    character or could be the start of a stop string.
    """

    def __init__(self, tokenizer: SharedTokenizer, stop: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stop = [text for text in stop if text]
        self._ids: list[int] = []
        self._before = 0
        """Where the decoding starts, for context."""
        self._read = 0
        """Ids before this one are in the text."""
        self._held = ""
        self._pieces: list[str] = []
        self.stopped = False
        """Whether a stop string was met; what follows it is dropped."""

    def copy(self) -> Detokenizer:
        """One that goes on by itself from here."""
        other = copy(self)
        other._ids, other._pieces = list(self._ids), list(self._pieces)
        return other

    @property
    def text(self) -> str:
        """Everything released so far."""
        return "".join(self._pieces)

    def add(self, token: int) -> str:
        """The text that this token releases, often empty."""
        self._ids.append(token)
        text = self._unread()
        if text.endswith(_HALF):
            return ""
        self._before, self._read = self._read, len(self._ids)
        self._held += text
        return self._release(final=False)

    def finish(self) -> str:
        """The text still held back, without a character that was never completed."""
        self._held += self._unread().rstrip(_HALF)
        self._before = self._read = len(self._ids)
        return self._release(final=True)

    def _unread(self) -> str:
        known = self._tokenizer.decode(self._ids[self._before : self._read])
        return self._tokenizer.decode(self._ids[self._before :])[len(known) :]

    def _release(self, *, final: bool) -> str:
        if self.stopped:
            return ""
        found = [at for stop in self._stop if (at := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            piece = self._held[: min(found)]
        else:
            keep = 0 if final else self._possible_stop()
            piece = self._held[: len(self._held) - keep]
        self._held = self._held[len(piece) :]
        if piece:
            self._pieces.append(piece)
        return piece

    def _possible_stop(self) -> int:
        """Length of the longest end of the held text that begins a stop string."""
        longest = max((len(stop) for stop in self._stop), default=1) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stop):
                return length
        return 0
