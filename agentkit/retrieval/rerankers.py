"""The reranker that the settings name."""

from __future__ import annotations

from pathlib import Path

from agentkit.errors import ModelError
from agentkit.retrieval.rerank import Reranker
from agentkit.retrieval.rerank_cross import CrossEncoderReranker
from agentkit.retrieval.rerank_head import TunedReranker
from agentkit.settings import Settings
from agentkit.types import Encoder

NONE, TUNED, SKILL = "none", "tuned", "skill:"


def open_reranker(settings: Settings, encoder: Encoder) -> Reranker | None:
    """The reranker that the settings name: the tuned head, none, or a CrossEncoder.

    The head that ships with the package was tuned on the vectors of one encoder; with any other,
    there is none. Raises ModelError for a head that cannot be read.
    """
    if settings.reranker == NONE:
        return None
    if settings.reranker == TUNED:
        return TunedReranker.of_package(encoder.digest)
    if settings.reranker.startswith(SKILL):
        raise ModelError(
            "a skill as the reranker needs an engine",
            where=f"reranker={settings.reranker}",
            hint="open the retriever through a Kit, or give it a SkillReranker",
        )
    place = Path(settings.reranker).expanduser()
    if place.suffix == ".safetensors":
        return TunedReranker.load(place, encoder.digest)
    return CrossEncoderReranker(place if place.exists() else settings.reranker)
