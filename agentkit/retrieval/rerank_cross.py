"""A sentence-transformers CrossEncoder as the reranker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from agentkit.errors import ModelError
from agentkit.retrieval.rerank import DEPTH, Candidates, first_order, headed_text, with_rest
from agentkit.threads import in_own_thread
from agentkit.types import Vectors


class CrossEncoderReranker:
    """Stateful: loads its model at the first query. Any sentence-transformers CrossEncoder.

    Only the best `depth` passages of the first search are read by the model, each with its
    heading path; the others follow in the order of the first search.
    """

    def __init__(self, model: str | Path, *, device: str = "cpu", depth: int = DEPTH) -> None:
        """`model` is a folder or a hub id whose files are in the local cache."""
        self._name = str(model)
        self._device = device
        self._depth = depth
        self._model: Any = None

    def scores(self, query: str, candidates: Candidates) -> Vectors:
        """See `Reranker`. Raises ModelError if the model cannot be loaded."""
        order = first_order(candidates)
        read = order[: self._depth]
        if not len(read):
            return np.zeros(0, dtype=np.float32)
        pairs = [(query, headed_text(candidates.chunks[i])) for i in read]
        model = self._loaded()
        found = in_own_thread(lambda: model.predict(pairs, show_progress_bar=False))
        scores = np.asarray(found, np.float32)
        return with_rest(order, read, scores.reshape(len(pairs), -1)[:, -1])

    def _loaded(self) -> Any:
        if self._model is None:
            from sentence_transformers import CrossEncoder

            try:
                self._model = CrossEncoder(
                    self._name,
                    device=self._device,
                    local_files_only=True,
                    trust_remote_code=False,
                    model_kwargs={"use_safetensors": True},
                )
            except (OSError, ValueError, KeyError, RuntimeError) as error:
                raise ModelError(
                    f"the reranker could not be loaded: {error}",
                    where=self._name,
                    hint="give a sentence-transformers CrossEncoder: a folder, or a hub id whose "
                    "files are in the local cache",
                ) from error
        return self._model
