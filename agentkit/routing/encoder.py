"""Texts become unit vectors, by a sentence-transformers model in a local folder."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from agentkit.errors import ModelError
from agentkit.models import check_folder, fingerprint
from agentkit.routing.remembered import RememberedVectors
from agentkit.threads import in_own_thread
from agentkit.types import Vectors

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

_CONFIGS = ("modules.json", "sentence_bert_config.json", "config.json", "tokenizer.json")
_AT_ONCE = 256
"""Texts between which an interrupt can come through."""
_DEPTH = 2 / 3
"""How far up the middle layer is."""


class SentenceEncoder:
    """Stateful: loads its model at the first text and remembers vectors of recent texts.

    `encode` may be called from any thread; the model computes for one at a time.
    """

    def __init__(
        self,
        folder: Path,
        device: str = "cpu",
        *,
        batch_size: int = 32,
        remembered: int = 20_000,
        kept: Path | None = None,
    ) -> None:
        """`folder` holds the model (`agentkit.models.resolve` gives it); `remembered` is how many
        vectors stay in memory, and `kept` the file for those of texts to keep. Raises ModelError
        if the folder may not be loaded."""
        check_folder(folder, "encoder")
        self._folder = folder
        self._device = device
        self._batch_size = batch_size
        self._remembered = remembered
        self._kept = None if kept is None else RememberedVectors(kept)
        self._model: SentenceTransformer | None = None
        self._digest: str | None = None
        self._vectors: OrderedDict[bytes, Vectors] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def folder(self) -> Path:
        """Where the model lies."""
        return self._folder

    @property
    def dimension(self) -> int:
        with self._lock:
            return _width(self._loaded())

    @property
    def digest(self) -> str:
        """SHA-256, hex, of the weights' fingerprint and of the configs that shape the vectors."""
        with self._lock:
            if self._digest is None:
                parts = [fingerprint(self._folder).encode()]
                files = [self._folder / name for name in _CONFIGS]
                files += sorted(self._folder.glob("*/config.json"))
                parts += [file.read_bytes() for file in files if file.is_file()]
                digests = b"".join(hashlib.sha256(part).digest() for part in parts)
                self._digest = hashlib.sha256(digests).hexdigest()
            return self._digest

    def encode(self, texts: Sequence[str]) -> Vectors:
        """`(len(texts), dimension)`, float32, rows of unit length. A text beyond the model's
        length limit (256 tokens for the embedded one) counts by its beginning."""
        return self.encode_with_middle(texts)[0]

    def encode_with_middle(
        self, texts: Sequence[str], *, keep: bool = False
    ) -> tuple[Vectors, NDArray[np.float32]]:
        """What `encode` gives, and from the same pass the mean over each text's tokens of a layer
        two thirds up the model, `(len(texts), width)`; `width` is 0 where a model has no layers.

        With `keep`, the texts are such as will be asked for by other processes too: their vectors
        are kept on disk, if the encoder has a file for them.
        """
        keys = [hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest() for text in texts]
        kept = self._kept if keep else None
        model_key = bytes.fromhex(self.digest) if kept is not None else b""
        with self._lock:
            model = self._loaded()
            known = {key: self._vectors[key] for key in keys if key in self._vectors}
            missing = {key: t for key, t in zip(keys, texts, strict=True) if key not in known}
            if missing and kept is not None:
                on_disk = kept.read([model_key + key for key in missing])
                known |= {key[len(model_key) :]: row for key, row in on_disk.items()}
                missing = {key: text for key, text in missing.items() if key not in known}
            if missing:
                fresh = self._compute(model, list(missing.values()))
                # Copies, so that one remembered row does not keep its whole batch alive.
                computed = {key: row.copy() for key, row in zip(missing, fresh, strict=True)}
                known |= computed
                if kept is not None:
                    kept.write({model_key + key: row for key, row in computed.items()})
            for key in keys:
                self._vectors[key] = known[key]
                self._vectors.move_to_end(key)
            while len(self._vectors) > self._remembered:
                self._vectors.popitem(last=False)
            width = _width(model)
        rows = np.stack([known[key] for key in keys]) if keys else np.zeros((0, width), np.float32)
        return np.ascontiguousarray(rows[:, :width]), np.ascontiguousarray(rows[:, width:])

    def _compute(self, model: SentenceTransformer, texts: list[str]) -> Vectors:
        """`(len(texts), dimension + width of the middle layer)`."""
        parts = [texts[at : at + _AT_ONCE] for at in range(0, len(texts), _AT_ONCE)]
        rows = np.concatenate([in_own_thread(partial(self._rows, model, part)) for part in parts])
        length = np.linalg.norm(rows[:, : _width(model)], axis=1, keepdims=True)
        rows[:, : _width(model)] /= np.maximum(length, 1e-12)
        return rows

    def _rows(self, model: SentenceTransformer, texts: list[str]) -> Vectors:
        found: Vectors = model.encode(
            [_writable(text) for text in texts],
            batch_size=self._batch_size,
            convert_to_numpy=True,
            show_progress_bar=False,
        ).astype(np.float32)
        return found

    def _loaded(self) -> SentenceTransformer:
        if self._model is None:
            from sentence_transformers import SentenceTransformer

            options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
            try:
                self._model = in_own_thread(
                    lambda: SentenceTransformer(
                        str(self._folder),
                        device=self._device,
                        model_kwargs={"use_safetensors": True},
                        **options,
                    )
                )
            except (OSError, ValueError, KeyError, RuntimeError) as error:
                raise ModelError(
                    f"the encoder could not be loaded: {error}",
                    where=str(self._folder),
                    hint="it must be a sentence-transformers folder that this version reads",
                ) from error
            _show_middle(self._model)
        return self._model


def _show_middle(model: SentenceTransformer) -> None:
    """Have the model put its middle layer beside each sentence vector, as it leaves its last
    module: so the order in which it takes texts up need not be known here."""
    config = getattr(getattr(model[0], "model", None), "config", None)
    if config is None:
        return
    config.output_hidden_states = True

    def append(_module: Any, _given: Any, features: dict[str, Any]) -> dict[str, Any]:
        layers = features.get("all_layer_embeddings")
        if layers:
            middle = layers[round((len(layers) - 1) * _DEPTH)]
            mask = features["attention_mask"].unsqueeze(-1).to(middle.dtype)
            mean = (middle * mask).sum(1) / mask.sum(1).clamp(min=1)
            vector = features["sentence_embedding"]
            both = vector.new_empty((len(vector), vector.shape[1] + mean.shape[1]))
            both[:, : vector.shape[1]] = vector
            both[:, vector.shape[1] :] = mean
            features["sentence_embedding"] = both
        return features

    model[-1].register_forward_hook(append)


def _width(model: SentenceTransformer) -> int:
    width = model.get_embedding_dimension()
    if width is None:
        raise ModelError("the encoder does not say how long its vectors are")
    return int(width)


def _writable(text: str) -> str:
    """With a replacement character for half of a surrogate pair, which no tokenizer takes."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
