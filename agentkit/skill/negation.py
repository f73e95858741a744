"""An English statement to its negation, by the few words that carry it.

What is asked of a statement can be asked of its negation, too: answers that do not agree are worth
less. It need not be elegant, and where the words do not tell how, the whole is denied.
"""

from __future__ import annotations

import re
from collections.abc import Callable

_DENIED = "It is not true that "
_OPENERS = (
    (re.compile(r"no one\b", re.IGNORECASE), "Somebody"),
    (re.compile(r"nobody\b", re.IGNORECASE), "Somebody"),
    (re.compile(r"nothing\b", re.IGNORECASE), "Something"),
    (re.compile(r"none\b", re.IGNORECASE), "Some"),
    (re.compile(r"no\b", re.IGNORECASE), "Some"),
)
"""Words that deny a statement from its subject on, and what affirms it."""
_NEITHER = re.compile(r"neither\b", re.IGNORECASE)
_EITHER = re.compile(r"either(?= [a-z]+ (?:may|can|will)\b(?! not\b))", re.IGNORECASE)
_SUBORDINATE = re.compile(
    r"(?:what|whatever|who|whoever|where|wherever|when|whenever|whether|while|if|unless|once|until"
    r"|after|before|because|although|though|to|upon|on|in|by|with|without|only|even)\b",
    re.IGNORECASE,
)
"""What opens with one of these may have its first verb in a clause that is not the main one."""
_WITHIN = re.compile(r"[,;:]|\b(?:that|which|who|whom|whose|where|when|if|unless|though|because)\b")
"""Where a clause other than the main one may begin."""

_PLAIN = re.compile(
    r"^((?:the|this|each|either|every|any|a|an) (?:[a-z]+ )?(?:agreement|contract|document|policy"
    r"|nda|party|company|supplier|vendor|provider|customer|client|buyer|seller|recipient|discloser"
    r"|licensor|licensee|employer)) ([a-z]+[^\Ws]s)\b",
    re.IGNORECASE,
)
"""A usual subject of a rule and its verb in the present."""

_Change = Callable[[re.Match[str]], str]
_CHANGES: tuple[tuple[re.Pattern[str], _Change], ...] = (
    (re.compile(r"\b(?:cannot|can not|can't)\b"), lambda m: "can"),
    (re.compile(r"\bneed not\b"), lambda m: "must"),
    (re.compile(r"\b(?:do|does|did) not (?:need|have) to\b"), lambda m: "must"),
    (re.compile(r"\b(?:must|may|shall|should) (?:not|never)\b"), lambda m: "may"),
    (re.compile(r"\b(will|would|could) (?:not|never)\b"), lambda m: m[1]),
    (re.compile(r"\bnever (?:has|have) to\b"), lambda m: "must"),
    (re.compile(r"\b(is|are|was|were|has|have|had) (?:not|never)\b"), lambda m: m[1]),
    (re.compile(r"\b(do|does|did) not\b"), lambda m: m[1]),
    (re.compile(r"\bnever "), lambda m: ""),
    (re.compile(r"(?<!not) (only|solely)\b"), lambda m: f" not {m[1]}"),
    (re.compile(r"\b(?:must|shall|should)(?! no\b)\b"), lambda m: "need not"),
    (re.compile(r"\b(may|can|will|would|could)(?! no\b)\b"), lambda m: _not(m[1])),
    (re.compile(r"\b(?:has|have) to\b"), lambda m: "need not"),
    (re.compile(r"\b(is|are|was|were)(?! no\b)\b"), lambda m: f"{m[1]} not"),
    (re.compile(r"\b(nobody|no one)\b"), lambda m: "somebody"),
    (re.compile(r"\bnothing\b"), lambda m: "something"),
    (re.compile(r"\bno (?=[a-z])"), lambda m: "some "),
    (re.compile(r"\b(has|have|had)(?= been\b)"), lambda m: f"{m[1]} not"),
    (_PLAIN, lambda m: f"{m[1]} does not {_infinitive(m[2])}"),
)
"""What affirms comes before what denies, and the surer words of each before the others."""


def negated(statement: str) -> str:
    """What is true where a statement is not, in English; an empty one stays empty."""
    text = " ".join(statement.split())
    if not text:
        return text
    for opener, instead in _OPENERS:
        if found := opener.match(text):
            return instead + text[found.end() :]
    if found := _NEITHER.match(text):
        return "Either" + text[found.end() :].replace(" nor ", " or ", 1)
    if found := _EITHER.match(text):
        return "Neither" + text[found.end() :]
    if not _SUBORDINATE.match(text):
        inner = _WITHIN.search(text)
        main = text[: inner.start()] if inner else text
        for pattern, change in _CHANGES:
            changed = pattern.sub(change, main, count=1)
            if changed != main:
                return changed + text[len(main) :]
    return _DENIED + _lowered(text)


def _not(verb: str) -> str:
    return "cannot" if verb == "can" else f"{verb} not"


def _infinitive(verb: str) -> str:
    """Of a verb that ends as in "it says"."""
    if verb == "has":
        return "have"
    if verb.endswith("ies"):
        return verb[:-3] + "y"
    return verb[:-2] if re.search(r"(?:ss|sh|ch|x|z|o)es$", verb) else verb[:-1]


def _lowered(text: str) -> str:
    """A sentence as it stands within another: names and abbreviations keep their capitals."""
    first = text.split(" ", 1)[0]
    return text if first[1:] != first[1:].lower() else text[0].lower() + text[1:]
