"""`train.yaml`: what a skill is trained from and how, as one frozen model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from agentkit.errors import SkillError

ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DataSpec(_Frozen):
    """One source of rows: a JSONL file of rows, or a public data set and how its records map."""

    path: str | None = None
    """A JSONL file of `{"input", "expected"}` rows, or the folder or file of the data set."""
    dataset: str | None = None
    """A public data set's id; see `agentkit.training.datasets`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Arguments of the data set's loader."""
    input: dict[str, Any] = Field(default_factory=dict)
    """Input field to Jinja expression over a record; without it records are rows already."""
    expected: dict[str, Any] = Field(default_factory=dict)
    limit: int | None = Field(default=None, ge=1)
    """At most so many documents (or rows, where there is no document)."""
    tuning: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Share of documents kept out of training, to choose thresholds and to watch progress."""
    holdout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of documents kept out of training and tuning, to measure on what was never seen."""


class TrainSpec(_Frozen):
    """Method, size, layers, data and budget of a training."""

    method: Literal["lora"] = "lora"
    layers: str = "all"
    """`all`, or an inclusive range of layer numbers such as `20-29`."""
    rank: int = Field(default=16, ge=1, le=256)
    alpha: int = Field(default=32, ge=1)
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    modules: tuple[str, ...] = ALL_LINEAR
    learning_rate: float = Field(default=5e-4, gt=0.0)
    head_learning_rate: float = Field(default=1e-3, gt=0.0)
    epochs: float = Field(default=2.0, gt=0.0)
    max_minutes: float | None = Field(default=None, gt=0.0)
    """Training stops at the end of the step that passes it; the rate falls to nothing by then."""
    packs_per_step: int = Field(default=4, ge=1)
    """Packs whose gradients are accumulated for one step of the optimiser."""
    pack_tokens: int = Field(default=2048, ge=128)
    max_packs: int | None = Field(default=None, ge=1)
    """For marks: at most so many packs, three in four of them for the rareness of their labels."""
    tuning_packs: int = Field(default=64, ge=1)
    """At most so many packs are tuned and measured on, evenly taken."""
    evidence_weight: float = Field(default=1.0, ge=0.0)
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    seed: int = 7
    data: tuple[DataSpec, ...] = Field(min_length=1)

    def layer_range(self, layers: int) -> range:
        """The adapted layers of a backbone with `layers` layers."""
        if self.layers == "all":
            return range(layers)
        first, _, last = self.layers.partition("-")
        try:
            chosen = range(int(first), int(last or first) + 1)
        except ValueError:
            chosen = range(0)
        if not chosen or chosen.start < 0 or chosen.stop > layers:
            raise SkillError(
                f"layers: {self.layers!r} is not a range within 0-{layers - 1}",
                where="train.yaml",
                hint='write "all" or an inclusive range such as "20-29"',
            )
        return chosen


def load_train_spec(path: Path) -> TrainSpec:
    """Read a `train.yaml`. Raises `SkillError` naming the file and the offending key."""
    try:
        data = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
        return TrainSpec.model_validate(data or {})
    except OSError as error:
        raise SkillError(
            "cannot read it", where=str(path), hint="a skill is trained from its train.yaml"
        ) from error
    except YAMLError as error:
        raise SkillError(f"not valid YAML: {error}", where=str(path)) from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise SkillError(f"{key}: {first['msg']}", where=str(path)) from error
