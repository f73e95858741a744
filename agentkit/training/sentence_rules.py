"""Rules made of a contract's own sentences: said in other words, or turned into their opposite.

Statements that people write name few matters, and an adapter can learn each with its opposite by
heart. Here every sentence with one duty, permission or ban is a matter of its own, and what decides
is a word like `not` or `may`: it has to be read.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from agentkit.retrieval.spans import split_spans

_DUTY = ("shall", "must", "will", "is required to")
_RIGHT = ("may", "can", "is allowed to", "has the right to")
_BAN = ("shall not", "may not", "must not", "cannot", "is not allowed to", "will not")
_FREE = ("need not", "does not have to", "is not required to", "is free not to")

_KINDS: tuple[tuple[str, re.Pattern[str], tuple[str, ...], tuple[str, ...]], ...] = tuple(
    (kind, re.compile(rf"\b(?:{words})\b"), same, turned)
    for kind, words, same, turned in (
        ("ban", "shall not|may not|must not|will not|cannot|can not", _BAN, (*_RIGHT, *_DUTY)),
        ("duty", "shall|must|will|agrees to|is obligated to", _DUTY, (*_FREE, *_BAN)),
        ("right", "may|can|has the right to|is entitled to", _RIGHT, _BAN),
        ("is not", "is not|are not|was not", ("isn't", "is not in fact"), ("is",)),
        ("is", "is|are|has been|constitutes", (), ("is not", "isn't", "is never")),
    )
)
"""What is said, the words that say it, others for the same, and those for the opposite."""
_PLURAL = {
    "is allowed to": "are allowed to",
    "is not allowed to": "are not allowed to",
    "is required to": "are required to",
    "is not required to": "are not required to",
    "is free not to": "are free not to",
    "has the right to": "have the right to",
    "does not have to": "do not have to",
    "is": "are",
    "isn't": "aren't",
    "is not": "are not",
    "is never": "are never",
    "is not in fact": "are not in fact",
}
_VERB = re.compile("|".join(pattern.pattern for _, pattern, _, _ in _KINDS))
_DENIED = re.compile(r"\b(?:not?|nor|never|neither|none|nothing|without|unless|except)\b", re.I)
_BOUND = re.compile(
    r"[;:(]|, (?=including|provided|which|subject|except|unless|but|if)"
    r"|\b(?:unless|except|provided|if|which|who|where|when|subject to)\b"
)
_CONDITION = re.compile(r"^(?:If|When|Where|Unless|Except|Upon|In|To|For|As|At|By|On|Subject)\b")
_HEAD = re.compile(r"^(.*?)(?= (?:of|to|in|for|under|by|from|with|on|between|set|as)\b|$)")
_CUT = re.compile(r"\b(?:a|an|the|of|to|in|for|by|and|or|be|at|any|all|such|that|is|as|its)$", re.I)
_ITEM = re.compile(r"^(?:\(?\w{1,4}[.)]\s+|[\d.]+\s+)+")
_WORD = re.compile(r"[a-z]{4,}")
_SUBJECT = (6, 90)
_REST = (12, 130)
"""Characters of what stands before the words that decide, and after them."""
_KNOWN = 0.6


@dataclass(frozen=True, slots=True)
class Sentence:
    """A statement of a contract, in parts: who, by which words, what."""

    subject: str
    verb: str
    rest: str
    start: int
    end: int

    @property
    def words(self) -> frozenset[str]:
        return frozenset(_WORD.findall(f"{self.subject} {self.rest}".lower()))


def sentences(text: str) -> Iterator[Sentence]:
    """The statements of a text with one duty, right or ban, and without conditions before it."""
    for span in split_spans(text):
        said = " ".join(text[span.start : span.end].split())
        said = _ITEM.sub("", said)
        verb = _VERB.search(said)
        if verb is None or not said[:1].isupper():
            continue
        subject, after = said[: verb.start()].strip(), said[verb.end() :]
        rest = after[: bound.start()] if (bound := _BOUND.search(after)) else after
        rest = rest.strip(" .")
        if not (_SUBJECT[0] <= len(subject) <= _SUBJECT[1] and _REST[0] <= len(rest) <= _REST[1]):
            continue
        if _BOUND.search(subject) or _DENIED.search(f"{subject} {rest}") or "," in subject:
            continue
        if _CONDITION.search(subject) or _CUT.search(rest):
            continue
        yield Sentence(subject, verb.group(), rest, span.start, span.end)


def reworded(sentence: Sentence, rng: random.Random, *, opposite: bool) -> str:
    """The statement in other words, or its opposite."""
    _, _, same, turned = next(k for k in _KINDS if k[1].fullmatch(sentence.verb))
    others = [w for w in (turned if opposite else same) if w != sentence.verb]
    verb = rng.choice(others) if others else sentence.verb
    if _plural(sentence):
        verb = _PLURAL.get(verb, verb)
    return f"{sentence.subject} {verb} {sentence.rest}."


def _plural(sentence: Sentence) -> bool:
    head = _HEAD.search(sentence.subject)
    last = (head.group(1) if head else sentence.subject).split()[-1].lower()
    many = last.endswith("s") and not last.endswith(("ss", "'s", "us", "is"))
    return sentence.verb.startswith("are") or many or " and " in sentence.subject


def sentence_rules(
    own: Sequence[Sentence], strange: Sequence[Sentence], rng: random.Random, *, absent: int
) -> list[tuple[str, str, Sentence | None]]:
    """Rules, their labels as ContractNLI names them, and which of `own` decides each.

    Every other sentence is asked both ways, so that nothing but the words that decide tells
    which. `absent` rules are made of `strange` ones, but of none that says much of what one of
    `own` says.
    """
    asked: list[tuple[str, str, Sentence | None]] = []
    for number, sentence in enumerate(own):
        first = rng.random() < 0.5
        for opposite in (first, not first) if number % 2 == 0 else (first,):
            label = "Contradiction" if opposite else "Entailment"
            asked.append((reworded(sentence, rng, opposite=opposite), label, sentence))
    missing = [
        sentence
        for sentence in rng.sample(strange, min(len(strange), 4 * absent))
        if all(len(sentence.words & one.words) < _KNOWN * len(sentence.words) for one in own)
    ]
    for sentence in missing[:absent]:
        text = reworded(sentence, rng, opposite=rng.random() < 0.5)
        asked.append((text, "NotMentioned", None))
    rng.shuffle(asked)
    return asked
