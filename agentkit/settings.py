"""One frozen `Settings`, from arguments, then `AGENTKIT_*` variables, then defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import platformdirs
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Where things are and how large they may get. Unknown keys fail."""

    model_config = SettingsConfigDict(
        env_prefix="AGENTKIT_", env_ignore_empty=True, frozen=True, extra="forbid"
    )

    home: Path = Field(
        default_factory=lambda: Path(platformdirs.user_cache_dir("agentkit", appauthor=False))
    )
    """Cache folder: models, served copies of skills, indexes, documents, runs."""
    backbone: str = "smollm2-135m-instruct"
    """An embedded model's name, a local folder, or a hub id."""
    encoder: str = "all-minilm-l6-v2"
    reranker: str = "tuned"
    """`tuned` (the head that ships with the package), `none`, the file of a head of your own,
    `skill:NAME` (a skill that points at evidence), or a sentence-transformers CrossEncoder: a
    folder, or a hub id whose files are in the local cache."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Computing type of the backbone. `auto` is what measures fastest in each phase: on a CPU with
    bfloat16 instructions, reading in bfloat16 and writing few rows with an int8 copy of the
    weights; on another one float32; on a GPU bfloat16, or float16 where it lacks that. `float32`
    is the exact one."""
    device: str = "cpu"
    threads: int | None = Field(default=None, ge=1)
    """Threads of torch; None leaves torch's own choice."""
    document_window: int = Field(default=6144, ge=1)
    """A document of at most so many tokens is given whole; a longer one as excerpts."""
    excerpt_budget: int = Field(default=1024, ge=1)
    """Tokens of retrieved excerpts given when the whole document does not fit."""
    max_batch: int = Field(default=32, ge=1)
    """Requests that the engine computes together."""
    max_waiting: int = Field(default=4096, ge=1)
    """Requests that may wait for the engine; whoever asks for more waits for room."""
    adapter_memory_bytes: int = Field(default=2_000_000_000, ge=0)
    """Memory for loaded adapters and their heads; the least recently used are dropped and brought
    back."""
    prefix_cache_bytes: int = Field(default=1_000_000_000, ge=0)
    """Memory for the states of documents already read."""
    document_max_bytes: int = Field(default=64_000_000, ge=1)
    document_seconds: float = Field(default=120.0, gt=0, allow_inf_nan=False)
    """Time limit for reading one document, in its child process."""
    document_memory_bytes: int = Field(default=3_000_000_000, ge=1)
    """Memory limit for reading one document, in its child process."""

    @property
    def models_dir(self) -> Path:
        return self.home / "models"

    @property
    def store_dir(self) -> Path:
        """Content-addressed copies of skills."""
        return self.home / "skills"

    @property
    def documents_dir(self) -> Path:
        return self.home / "documents"

    @property
    def indexes_dir(self) -> Path:
        return self.home / "indexes"

    @property
    def vectors_db(self) -> Path:
        """Vectors of the skills' utterances, by encoder and text."""
        return self.home / "vectors.sqlite"

    @property
    def learnt_file(self) -> Path:
        """Utterances that people taught the controller."""
        return self.home / "learnt.json"

    @property
    def releases_file(self) -> Path:
        """Which version of a skill serves which share of the runs."""
        return self.home / "releases.json"

    @property
    def runs_db(self) -> Path:
        return self.home / "runs.sqlite"
