"""Output constrained to a JSON Schema, and always closed before the token limit.

llguidance says which tokens may come next. Beside it, each row keeps a closing path: tokens that
end the output validly from where it is. A token is taken only if from the state after it some
closing path still fits into the tokens that are left; where none does, the known path is followed
to its end. So the output is valid whatever the model prefers, and a schema that does not fit the
limit is refused before anything is computed.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Mapping
from copy import copy
from threading import Lock
from typing import Any

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer
from llguidance.hf import from_tokenizer
from numpy.typing import NDArray
from torch import Tensor

from agentkit.engine.backbone import Backbone
from agentkit.errors import EngineError, LimitError, SkillError
from agentkit.types import Json

MAX_STRING = 2000
"""Characters of a string whose schema gives no limit."""
MAX_NUMBER = 10**15
_KEPT_GRAMMARS = 64
_FIRST_TRIES, _LATER_TRIES = 12, 2
_TRIED = 32
"""The best tokens are asked about one by one, so many of them, before the whole mask is made."""
_STUCK = 7.0
"""Nats: a token that the model gives less than one in a thousand is not what it has to say."""
_COMPACT = {
    "item_separator": ",",
    "key_separator": ":",
    "whitespace_flexible": False,
    # Without \u escapes no half of a surrogate pair can be written.
    "json_allowed_escapes": '"\\bfnrt',
}
_CHECKED_LATER = {"uniqueItems"}
"""Keywords that no grammar can hold; validation of the output still sees them."""
_BOUNDED_BY = {"enum", "const", "maxLength", "pattern", "format"}
_MAPS = ("properties", "$defs", "definitions", "patternProperties")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_SINGLE = ("items", "additionalProperties", "not")


def bounded(schema: Json, *, max_string: int = MAX_STRING) -> Json:
    """A narrower schema: strings and numbers get limits, objects with properties are closed.

    Whatever meets it meets `schema` too, but for what only validation can check (`uniqueItems`).
    """
    close = "allOf" not in json.dumps(schema)  # a closed part of an allOf would refuse the others

    def narrow(part: Json) -> Json:
        if not isinstance(part, Mapping):
            return part
        new = {key: value for key, value in part.items() if key not in _CHECKED_LATER}
        for key in _MAPS:
            if isinstance(new.get(key), Mapping):
                new[key] = {name: narrow(value) for name, value in new[key].items()}
        for key in _LISTS:
            if isinstance(new.get(key), list):
                new[key] = [narrow(value) for value in new[key]]
        for key in _SINGLE:
            if key in new:
                new[key] = narrow(new[key])
        kinds = new.get("type")
        kinds = kinds if isinstance(kinds, list) else [kinds]
        if "string" in kinds and not _BOUNDED_BY & new.keys():
            new["maxLength"] = max(max_string, int(new.get("minLength", 0)))
        if {"integer", "number"} & set(map(str, kinds)) and not {"enum", "const"} & new.keys():
            if not {"minimum", "exclusiveMinimum"} & new.keys():
                new["minimum"] = -MAX_NUMBER
            if not {"maximum", "exclusiveMaximum"} & new.keys():
                new["maximum"] = MAX_NUMBER
        if close and "properties" in new and "patternProperties" not in new:
            new.setdefault("additionalProperties", False)
        return new

    return narrow(schema)


class Vocabulary:
    """The tokenizer as llguidance needs it, and which tokens lead to a short close."""

    def __init__(self, backbone: Backbone) -> None:
        self.grammar_tokenizer: LLTokenizer = from_tokenizer(
            backbone.tokenizer.raw,
            n_vocab=backbone.vocabulary,
            eos_token=sorted(backbone.eos_ids) or None,
        )
        self.ends = backbone.eos_ids
        self.size = backbone.vocabulary
        texts = [
            self.grammar_tokenizer.decode_bytes([token]) for token in range(len(backbone.tokenizer))
        ]
        # Brackets and quotes close; then digits, then words (they finish keys and enumerations
        # fastest), then whatever else.
        order = {char.encode(): 100 - at for at, char in enumerate('}]"0123456789')}
        self._quote, self._tilde = (_token_of(char, texts) for char in (b'"', b"~"))
        self._filling = np.array(
            [len(text) if text.isalnum() else 0.0 for text in texts]
            + [0.0] * (self.size - len(texts))
        )
        self.preference = np.zeros(self.size, dtype=np.float64)
        for token, text in enumerate(texts):
            if text in order:
                self.preference[token] = order[text]
            elif text.isalnum():
                self.preference[token] = 1 + min(len(text), 40)
            else:
                self.preference[token] = 1 / (1 + len(text))

    def shortest_close(self, matcher: LLMatcher, limit: int, tries: int) -> list[int] | None:
        """At most `limit` tokens that end the output from here; None if none were found."""
        random = np.random.default_rng(0)
        for attempt in range(tries):
            preference = self.preference
            if attempt:
                preference = preference * random.uniform(0.2, 1, self.size)
            path = self._close_by(matcher.deep_copy(), limit, preference)
            if path is not None:
                return path
        return None

    def _close_by(
        self, matcher: LLMatcher, limit: int, preference: NDArray[np.float64]
    ) -> list[int] | None:
        path: list[int] = []
        while not matcher.is_accepting():
            tokens = matcher.compute_ff_tokens()
            if not tokens:
                if len(path) >= limit:
                    return None
                allowed = _bits(matcher.compute_bitmask(), self.size)
                if not allowed[self._tilde]:
                    tokens = [int(np.where(allowed, preference, -1.0).argmax())]
                elif allowed[self._quote]:  # a string, which alone may hold a tilde
                    tokens = [self._quote]
                else:  # one that is still too short
                    tokens = [int(np.where(allowed, self._filling, -1.0).argmax())]
                if not allowed[tokens[0]]:
                    return None
            if len(path) + len(tokens) > limit or not matcher.consume_tokens(tokens):
                return None
            path.extend(tokens)
        return path


def _token_of(char: bytes, texts: list[bytes]) -> int:
    if char not in texts:
        raise EngineError(f"the tokenizer has no token for {char!r}, so it cannot write JSON")
    return texts.index(char)


def _bits(mask: bytes, size: int) -> NDArray[np.bool_]:
    packed = np.frombuffer(mask, dtype=np.uint8)
    return np.unpackbits(packed, count=size, bitorder="little").view(np.bool_)


class Constraint:
    """Stateful: where one row is in its grammar, and how it would close."""

    def __init__(self, matcher: LLMatcher, vocabulary: Vocabulary, limit: int) -> None:
        """Raises `LimitError` if no output of at most `limit` tokens is found."""
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._left = limit
        self._forced = False
        self.done = False
        """Whether the output is complete."""
        self.stuck = False
        """Whether the grammar has left nothing to choose that was at all likely."""
        close = vocabulary.shortest_close(matcher, limit, _FIRST_TRIES)
        if close is None:
            raise LimitError(
                f"no output of the schema fits into {limit} tokens",
                hint="raise generation.max_tokens or make the output schema smaller",
            )
        self._close = close

    def copy(self) -> Constraint:
        """One that goes on by itself from here."""
        other = copy(self)
        other._matcher, other._close = self._matcher.deep_copy(), list(self._close)
        return other

    def choose(
        self, logits: Tensor, sample: Callable[[Tensor], int], *, greedy: bool = False
    ) -> int | None:
        """The next token, by `sample` among those allowed; None when the output ends here.

        `greedy` says that `sample` takes the best one.
        """
        if self._closing:
            return self.take(None)
        token = sample(logits) if greedy else None
        if token is None or not self._allows(token):
            token = sample(self._masked(logits))
            self.stuck = self.stuck or float(logits.logsumexp(-1) - logits[token]) > _STUCK
        return self.take(token)

    def best(self, scores: Tensor, count: int) -> list[tuple[int | None, float]]:
        """Of the tokens that are allowed the `count` best by scores `(vocabulary,)`, best first.

        Where the output can only be closed, that is None, as `take` takes it, at no cost.
        """
        if self._closing:
            return [(None, 0.0)]
        found: list[tuple[int | None, float]] = []
        values, tokens = scores.topk(_TRIED)
        for token, value in zip(tokens.tolist(), values.tolist(), strict=True):
            if self._allows(token):
                found.append((token, value))
                if len(found) == count:
                    return found
        if found:
            return found
        values, tokens = self._masked(scores).topk(count)
        each = zip(tokens.tolist(), values.tolist(), strict=True)
        return [(token, value) for token, value in each if value > -torch.inf]

    def take(self, token: int | None) -> int | None:
        """Go on by an allowed token; returns what was taken, None when the output ends here.

        Given None, or a token after which no end would fit the limit, it closes the output.
        """
        if not self._forced:
            if self._left == 0 or token in self._vocabulary.ends:
                self.done = True  # complete, though more could follow
                return None
            if token is not None and self._accept(token):
                return token
            self._forced = True
        if not self._close:
            self.done = True
            return None
        token = self._close.pop(0)
        if not self._matcher.consume_token(token):
            raise EngineError(f"the output grammar refused its own path: {self._error()}")
        self._left -= 1
        self.done = not self._close
        return token

    @property
    def _closing(self) -> bool:
        return self._forced or self._left == 0

    def _masked(self, scores: Tensor) -> Tensor:
        """Scores of the tokens that are allowed, the others at minus infinity."""
        allowed = _bits(self._matcher.compute_bitmask(), self._vocabulary.size)
        return scores.masked_fill(~torch.from_numpy(allowed).to(scores.device), -torch.inf)

    def _allows(self, token: int) -> bool:
        """Whether the grammar's mask has the token, without the mask, which takes far longer.

        Where only one text can follow, the mask has its first token as the tokenizer spells it,
        and no shorter one.
        """
        return self._matcher.validate_tokens([token]) == 1 and (
            self._matcher.compute_ff_tokens()[:1] in ([], [token])
        )

    def forced(self) -> list[int]:
        """The tokens that can only come next, taken; they need no logits.

        A text that the grammar leaves no choice about is spelled as the tokenizer spells it.
        """
        taken: list[int] = []
        if self._forced or self.done or self._left == 0:
            return taken
        for token in self._matcher.compute_ff_tokens():
            if token in self._vocabulary.ends or self._left == 0 or not self._accept(token):
                break
            taken.append(token)
        return taken

    def _accept(self, token: int) -> bool:
        if not self._matcher.consume_token(token):
            raise EngineError(f"the output grammar failed: {self._error()}")
        left = self._left - 1
        close = self._path_after(token, left)
        if close is None:
            self._matcher.rollback(1)
            return False
        self._close, self._left = close, left
        self.done = self._matcher.is_stopped()
        return True

    def _path_after(self, token: int, left: int) -> list[int] | None:
        if self._close and self._close[0] == token:
            return self._close[1:]
        if self._matcher.is_accepting():
            return []
        end = [min(self._vocabulary.ends)] if self._vocabulary.ends else []
        path = [*self._close, *end]
        if len(self._close) <= left and self._matcher.validate_tokens(path) == len(path) and end:
            return self._close
        return self._vocabulary.shortest_close(self._matcher, left, _LATER_TRIES)

    def _error(self) -> str:
        return str(self._matcher.get_error()) or "no reason given"


class Grammars:
    """Stateful: compiled grammars by schema, the least recently used dropped. Thread-safe."""

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone
        self._lock = Lock()
        self._vocabulary: Vocabulary | None = None
        self._matchers: OrderedDict[str, LLMatcher] = OrderedDict()

    def constraint(self, schema: Mapping[str, Json], limit: int) -> Constraint:
        """A row's constraint, from the start, for an output of at most `limit` tokens.

        Raises `SkillError` where the schema cannot constrain decoding, `LimitError` where nothing
        that meets it fits the limit.
        """
        with self._lock:
            if self._vocabulary is None:  # about a second, so only once a schema is met
                self._vocabulary = Vocabulary(self._backbone)
            vocabulary = self._vocabulary
            matcher = self._matcher(schema, vocabulary).deep_copy()
        return Constraint(matcher, vocabulary, limit)

    def _matcher(self, schema: Mapping[str, Json], vocabulary: Vocabulary) -> LLMatcher:
        key = json.dumps(schema, sort_keys=False)
        matcher = self._matchers.get(key)
        if matcher is None:
            matcher = _compile(schema, vocabulary)
            self._matchers[key] = matcher
            if len(self._matchers) > _KEPT_GRAMMARS:
                self._matchers.popitem(last=False)
        self._matchers.move_to_end(key)
        return matcher


def _compile(schema: Mapping[str, Json], vocabulary: Vocabulary) -> LLMatcher:
    overrides: Any = _COMPACT
    grammar = LLMatcher.grammar_from_json_schema(bounded(schema), overrides=overrides)
    matcher = LLMatcher(vocabulary.grammar_tokenizer, grammar, log_level=0)
    if matcher.is_error():
        raise SkillError(
            f"the output schema cannot constrain decoding: {matcher.get_error()}",
            hint="use the JSON Schema keywords that llguidance supports",
        )
    return matcher
