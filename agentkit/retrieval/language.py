"""Is a text English? A count of common words, no more: it flags, it never refuses."""

from __future__ import annotations

import re

# Words that are frequent in English prose and rare in the languages that share its letters;
# "in", "or", "as", "is", "for" and "an" are common elsewhere too and therefore left out.
# fmt: off
_ENGLISH = frozenset((
    "the", "of", "and", "to", "shall", "this", "any", "by", "with", "be", "that", "not", "which",
    "such", "from", "it", "are", "will", "may", "other", "all", "has", "have", "its", "their",
    "on", "at", "your", "you", "we", "our",
))
# fmt: on
_WORD = re.compile(r"[^\W\d_]+")
_WINDOW = 300
_LEAST_SHARE = 0.10
_LEAST_WORDS = 40
_FOREIGN_WINDOWS = 0.25


def english_share(words: list[str]) -> float:
    """Share of the words that are common English function words (about 0.3 in contracts)."""
    return sum(word in _ENGLISH for word in words) / len(words) if words else 0.0


def english_warning(text: str) -> str | None:
    """A warning when the text, or a quarter of it, does not look like English; else None.

    Texts of fewer than 40 words are not judged. Tables of names and figures in an English text
    hold few common words too, so a share below a tenth is asked for.
    """
    words = [word.lower() for word in _WORD.findall(text)]
    if len(words) < _LEAST_WORDS:
        letters = sum(map(str.isalpha, text))
        latin = sum(character.isalpha() and character < "ɐ" for character in text)
        if letters >= _LEAST_WORDS and latin < letters / 2:
            return "not English: most of its letters are not Latin; the skills read English"
        return None
    share = english_share(words)
    if share < _LEAST_SHARE:
        return (
            f"not English, it seems: {share:.0%} of its words are common English words; "
            "the skills read English"
        )
    windows = [words[i : i + _WINDOW] for i in range(0, len(words), _WINDOW)]
    windows = [window for window in windows if len(window) >= _LEAST_WORDS]
    foreign = sum(english_share(window) < _LEAST_SHARE for window in windows)
    if foreign / len(windows) >= _FOREIGN_WINDOWS:
        return (
            f"in part not English, it seems: {foreign} of {len(windows)} stretches of "
            f"{_WINDOW} words hold few common English words; the skills read English"
        )
    return None
