"""What a situation has to be for a rule to hold."""

from __future__ import annotations

from agentkit.advise.memory import way
from agentkit.advise.situation import Situation

LEAST_FOR_A_HEAD = 200
"""Rows: a head begins with nothing and wants more of them than the words' likelihood does."""


def always(_: Situation) -> bool:
    return True


def head_alone(s: Situation) -> bool:
    return not way(s).adapter


def prefix(s: Situation) -> bool:
    own = s.deployment == "agentkit" and not head_alone(s) and s.tasks >= 1000
    return own and not recomputed(s)  # which a prefix cannot be


def recomputed(s: Situation) -> bool:
    return s.memory < 6 * s.weights + 1


def few_and_short(s: Situation) -> bool:
    return s.document_tokens < 400 and (s.documents or s.rows) * s.document_tokens < 200_000


def worth_trials(s: Situation) -> bool:
    # Trials keep their activations, whatever checkpointing says.
    return s.rows >= 1000 and s.updates in ("rarely", "monthly") and not recomputed(s)


def trains_a_head(s: Situation) -> bool:
    """Whether `answer.scoring` is to be a task head beside an adapter."""
    chooses = s.answer == "choice" and s.deployment == "agentkit" and s.rows >= LEAST_FOR_A_HEAD
    return (chooses or s.answer == "marks") and not head_alone(s)
