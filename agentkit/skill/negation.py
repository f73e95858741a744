"""An English statement to its negation, by the few words that carry it.

What is right of a statement tells what is right of its negation, if that is true exactly where the
statement is not. So where its words do not tell how (several verbs, exceptions, quantities), the
whole is denied: "It is not true that ...".
"""

from __future__ import annotations

import re

_DENIED = "It is not true that "
_SHORT = (
    (re.compile(r"[’`]"), "'"),
    (re.compile(r"\bcan't\b|\bcan not\b"), "cannot"),
    (re.compile(r"\bwon't\b"), "will not"),
    (re.compile(r"\bshan't\b"), "shall not"),
    (re.compile(r"([a-z])n't\b"), r"\1 not"),
)
_LOWERED = re.compile(
    r"(?:the|an?|this|that|these|those|each|every|all|any|both|most|some|no|neither|either|nobody"
    r"|nothing|none|what|who|whoever|whatever|when|where|if|unless|it|there|its|their|such|other"
    r"|certain|several|many|few|one|only|on|in|by|with|without|upon|under|after|before)\b",
    re.IGNORECASE,
)
"""Words that are no names: they lose their capital within another sentence."""
_ENTANGLED = re.compile(
    r"[;:]|\b(?:(?:or|and) (?:needs?|has|have)|but|unless|except|other than|apart from|nor|provided"
    r"|no (?:more|less|later|fewer|longer|sooner|matter))\b",
    re.IGNORECASE,
)
"""What makes the turning of one word another statement than the negation."""
_OPENS = re.compile(
    r"(?:what|who|where|when|if|once|until|after|before|because|although|though|to|upon|on|in|by"
    r"|with|only|even|as|since|subject|during|for|at|under|provided|notwithstanding|should|whether"
    r"|while|each|every|all|both|either|any|most|many|few|certain|several)(?:ever|out)?\b",
    re.IGNORECASE,
)
"""What begins so may have its first verb in another clause, or speaks of a quantity."""
_WITHIN = re.compile(
    r",|\b(?:that|which|who|whom|whose|where|when|if|though|because|after|before|until|once|while"
    r"|as|since|whether|what|how|than|so)\b"
)
"""Where a clause other than the main one may begin."""
_VERB = re.compile(
    r"\b(?P<verb>can(?=not\b)|(?:can|could|may|might|must|shall|should|will|would|is|are|was|were|do"
    r"|does|did|has|have|had|need)\b)(?P<not>not\b| not\b| never\b)?(?P<to> (?:have |need )?to\b)?"
    r"(?P<been> been\b)?"
)
_NONE = re.compile(r"\b(?P<none>no one|nobody|nothing|none|no)\b", re.IGNORECASE)
_SOME = {
    "no one": "somebody",
    "nobody": "somebody",
    "nothing": "something",
    "none": "some",
    "no": "some",
}
_DUTY = re.compile(r"\b(?:must|shall|should|(?:has|have|is|are) to)\b")
_ONLY = re.compile(r"(?<!not )\b(?:only|solely) (?=\w)")
_NEVER = re.compile(r"\bnever (?:(?P<duty>has|have) to )?")
_PLAIN = re.compile(
    r"(?P<subject>(?:the|this|a|an) (?:(?!always|often|usually|never)[a-z]+ ){1,2})"
    r"(?P<verb>acknowledges|allows|answers|applies"
    r"|bars|bears|binds|contains|counts|covers|deals|declares|ends|excludes|forbids|gets|gives"
    r"|grants|has|includes|indemnifies|keeps|leaves|limits|makes|names|needs|owes|owns|passes|pays"
    r"|permits|prohibits|promises|protects|provides|receives|remains|renews|requires|restricts|rules"
    r"|says|shares|signs|states|survives|takes|terminates|transfers|uses|warrants)\b",
    re.IGNORECASE,
)
"""A subject and a verb that rules often have."""


def negated(statement: str) -> str | None:
    """What is true exactly where a statement is not, in English; None for a question or nothing."""
    text = " ".join(statement.split())
    for pattern, instead in _SHORT:
        text = pattern.sub(instead, text)
    if not text or text.endswith("?"):
        return None
    turned = None if _ENTANGLED.search(text) else _turned(text)
    return turned or _DENIED + _lowered(text)


def _turned(text: str) -> str | None:
    """The statement with the word that carries it turned; None where that is not one word."""
    first, _, rest = text.partition(" ")
    opener = first.lower()
    if opener in ("each", "every", "all", "both") and _verbs_in(rest) < 2:
        return f"Not {'every' if opener == 'each' else opener} {rest}"
    if opener == "some":
        return None if _verbs_in(rest) != 1 else f"No {rest}"
    if none := _NONE.match(text):
        # "No party shall" leaves it to none of them; that some must would be more than its denial.
        return _SOME[none["none"].lower()].capitalize() + _freed(text[none.end() :])
    if opener == "neither":
        return None if " nor " in rest else f"At least one {_freed(rest)}"
    if _OPENS.match(text):
        return None
    inner = _WITHIN.search(text)
    main, rest = (text[: inner.start()], text[inner.start() :]) if inner else (text, "")
    turned = _turned_verb(main)
    return None if turned is None else turned + rest


def _verbs_in(text: str) -> int:
    return sum(1 for found in _VERB.finditer(text) if _carries(found))


def _carries(found: re.Match[str]) -> bool:
    """Whether a verb is one that others hang on, and not one of its own ("they have a right")."""
    verb = found["verb"]
    if verb in ("do", "does", "did", "need"):
        return bool(found["not"])
    return verb not in ("has", "have", "had") or bool(found["not"] or found["to"] or found["been"])


def _turned_verb(main: str) -> str | None:
    verbs = [found for found in _VERB.finditer(main) if _carries(found)]
    if len(verbs) > 1:
        return None
    denied = bool(verbs and verbs[0]["not"])
    if none := _NONE.search(main):
        if denied or len(_NONE.findall(main)) > 1:
            return None
        return _freed(main[: none.start()] + _SOME[none["none"].lower()] + main[none.end() :])
    if (never := _NEVER.search(main)) and not denied:
        instead = "must " if never["duty"] else ""
        return main[: never.start()] + instead + main[never.end() :]
    if only := _ONLY.search(main):
        return None if denied else _freed(main[: only.start()] + "not " + main[only.start() :])
    if not verbs:
        plain = _PLAIN.match(main)
        if plain is None:
            return None
        said = f"{plain['subject']}does not {_infinitive(plain['verb'].lower())}"
        return said + _any(main[plain.end() :])
    found = verbs[0]
    after = main[found.end() :]
    instead = _opposite(found)
    quantified = _some(after) if denied else _any(after)
    return main[: found.start()] + instead + quantified


def _opposite(found: re.Match[str]) -> str:
    """What takes the place of a verb with all that belongs to it."""
    verb, denied, to, been = found["verb"], found["not"], found["to"] or "", found["been"] or ""
    if denied:
        if verb in ("must", "shall", "should") or (to and verb in ("is", "are", "was", "were")):
            return "may"
        if verb == "need" or to.strip() in ("have to", "need to"):
            return "must"
        return verb + to + been
    if verb in ("must", "shall", "should") or to:
        return "need not"
    return ("cannot" if verb == "can" else f"{verb} not") + been


def _freed(text: str) -> str:
    """Without a duty: what nobody must, and what must be only so, somebody may, and otherwise."""
    return _DUTY.sub("may", text, count=1)


def _any(text: str) -> str:
    """What is said of something, where it is said of nothing."""
    return re.sub(r"\bsome\b", "any", text)


def _some(text: str) -> str:
    return re.sub(r"\bany\b", "some", text)


def _infinitive(verb: str) -> str:
    """Of a verb that ends as in "it says"."""
    if verb == "has":
        return "have"
    if verb.endswith("ies"):
        return verb[:-3] + "y"
    return verb[:-2] if verb.endswith("sses") else verb[:-1]


def _lowered(text: str) -> str:
    """A sentence as it stands within another: names keep their capitals."""
    return text[0].lower() + text[1:] if _LOWERED.match(text) else text
