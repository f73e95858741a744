"""`train.yaml`: what a skill is trained from and how, as one frozen model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from agentkit.errors import SkillError
from agentkit.skill.guarded_yaml import KeyPath, YamlSource
from agentkit.training.layer_selection import Importance

Method: TypeAlias = Literal["lora", "dora", "alora", "bottleneck", "hybrid", "prefix", "head"]
RATES: dict[Method, float] = {
    "lora": 5e-4,
    "dora": 5e-4,
    "alora": 5e-4,
    "bottleneck": 5e-4,
    "hybrid": 5e-4,
    "prefix": 5e-3,
    "head": 1e-3,
}
HEAD_EPOCHS = 20.0
"""Epochs for a head alone: it learns from states that are kept, and its passes are short."""
SIZED_BY: dict[Method, tuple[str, ...]] = {
    "lora": ("rank",),
    "dora": ("rank",),
    "alora": ("rank",),
    "bottleneck": ("reduction_factor",),
    "hybrid": ("rank", "reduction_factor"),
    "prefix": ("virtual_tokens",),
    "head": (),
}
"""The settings that say how large each method's adapter is."""
DROPPING: frozenset[Method] = frozenset(("lora", "dora", "hybrid"))
"""The methods that a dropout acts on."""


def _layers_text(given: Any) -> Any:
    """A number, or a list of numbers and ranges, as it would be written in one text."""
    if isinstance(given, list | tuple):
        return ", ".join(map(str, given))
    return str(given) if isinstance(given, int) and not isinstance(given, bool) else given


def _no_auto(layers: str) -> str:
    if layers.strip() == "auto":
        raise ValueError(
            '"auto" is measured, not searched for: write it as `layers` outside search'
        )
    return layers


Layers: TypeAlias = Annotated[str, BeforeValidator(_layers_text)]
SearchedLayers: TypeAlias = Annotated[Layers, AfterValidator(_no_auto)]
Rate: TypeAlias = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
Rank: TypeAlias = Annotated[int, Field(ge=1, le=256)]
Factor: TypeAlias = Annotated[float, Field(ge=1.0, allow_inf_nan=False)]
Tokens: TypeAlias = Annotated[int, Field(ge=1, le=1024)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class NegationSpec(_Frozen):
    """Statements of training rows that are asked negated, too: a skill that has seen both over one
    document cannot answer by the matter alone."""

    field: str
    """Input field that holds the statement, in English."""
    expected: str
    """Expected field that holds the answer."""
    opposites: tuple[str, str]
    """Answers that change places, such as `[yes, no]`; any other is the same of a negation."""
    share: float = Field(default=1.0, gt=0.0, le=1.0)
    """Share of the rows."""

    @field_validator("opposites")
    @classmethod
    def _two(cls, opposites: tuple[str, str]) -> tuple[str, str]:
        if opposites[0] == opposites[1]:
            raise ValueError("two different answers are opposites")
        return opposites


class DataSpec(_Frozen):
    """One source of rows: a JSONL file of rows, or a public data set and how its records map."""

    path: str | None = None
    """A JSONL file of `{"input", "expected"}` rows, or the folder that holds the data set (from
    the skill's)."""
    dataset: str | None = None
    """A public data set's id; see `agentkit.training.datasets`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Arguments of the data set's loader."""
    license: str | None = None
    """The data's licence, as the model card is to say; a public data set's is known."""
    input: dict[str, Any] = Field(default_factory=dict)
    """Input field to Jinja expression over a record; without it records are rows already."""
    expected: dict[str, Any] = Field(default_factory=dict)
    limit: int | None = Field(default=None, ge=1)
    """At most so many documents (or rows, where there is no document)."""
    repeat: int = Field(default=1, ge=1)
    """How often its training rows are taken, so that a small source counts beside large ones."""
    negations: NegationSpec | None = None
    """Ask training rows' statements negated, too."""
    tuning: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Share of documents kept out of training, to choose thresholds and to watch progress."""
    holdout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of documents kept out of training and tuning, to measure on what was never seen."""


class SearchSpec(_Frozen):
    """What is searched through, and for how long; a setting that is left out stays as it is."""

    minutes: float = Field(default=30.0, gt=0.0)
    trials: int = Field(default=20, ge=1)
    learning_rate: tuple[Rate, Rate] | None = (1e-4, 2e-3)
    """Least and most, searched on a logarithmic scale; a prefix takes ten times as much."""
    rank: tuple[Rank, ...] = (4, 8, 16, 32)
    """Tried with the methods that have a rank, as are the next two with those that have them."""
    reduction_factor: tuple[Factor, ...] = ()
    virtual_tokens: tuple[Tokens, ...] = ()
    layers: tuple[SearchedLayers, ...] = ()
    method: tuple[Method, ...] = ()

    @field_validator("learning_rate")
    @classmethod
    def _least_first(cls, rates: tuple[float, float] | None) -> tuple[float, float] | None:
        if rates is not None and rates[0] > rates[1]:
            raise ValueError(f"the least comes first: [{rates[1]:g}, {rates[0]:g}]")
        return rates

    def sizes(self, method: Method) -> dict[str, tuple[float, ...]]:
        """What is tried of the settings that size a method's adapter, by name."""
        return {name: tried for name in SIZED_BY[method] if (tried := getattr(self, name))}


class TrainSpec(_Frozen):
    """Method, size, layers, data and budget of a training."""

    method: Method = "lora"
    layers: Layers = "all"
    """`all`, `upper 1/3`, layer numbers and inclusive ranges such as `3, 20-29` (or as a list), or
    `auto`: those that matter most by `importance`."""
    layers_of: str | None = None
    """Folder of a trained skill (from this one) whose layers are taken instead."""
    importance: Importance = "validation"
    layer_count: int | None = Field(default=None, ge=1)
    """How many layers `auto` chooses by `gradient` or `attention`; a third of them by default."""
    probe_packs: int = Field(default=24, ge=2)
    """Packs of the sample that importance is measured on."""
    reduction_factor: Factor = 16.0
    """By how much a bottleneck is narrower than the backbone's states."""
    placement: Literal["houlsby", "pfeiffer"] = "pfeiffer"
    """Bottlenecks after attention and feed-forward, or after feed-forward alone."""
    virtual_tokens: Tokens = 16
    """Length of a prefix."""
    start_from: str | None = None
    """Folder of a skill (from this one) whose adapter this training begins with: a general adapter
    first, then each skill from it. `agentkit train` trains it first where it is not trained yet."""
    rank: Rank = 16
    size: Literal["auto"] | None = None
    """`auto`: the rank (of a bottleneck the reduction factor) is chosen by what it gains on a
    sample; `alpha` keeps its ratio to it. A search beside it leaves that setting out."""
    search: SearchSpec | None = None
    """Settings to be found by a search before the training; needs the extra `search`."""
    alpha: int = Field(default=32, ge=1)
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    modules: tuple[str, ...] | Literal["all"] = "all"
    """Last names of the linear modules to adapt; by default all of a layer."""
    learning_rate: float | None = Field(default=None, gt=0.0)
    """By default what suits the method: adapters learn at about ten times a full fine-tuning's."""
    head_learning_rate: float = Field(default=1e-3, gt=0.0)
    epochs: float = Field(default=2.0, gt=0.0)
    max_minutes: float | None = Field(default=None, gt=0.0)
    """The steps stop at the end of the one that passes it; the rate falls to nothing by then. What
    comes before (lower layers' states, probes, a search of `search.minutes`) and after (figures on
    the tuning rows, a calibration) takes its own time."""
    packs_per_step: int = Field(default=4, ge=1)
    """Packs whose gradients are accumulated for one step of the optimiser."""
    pack_tokens: int = Field(default=2048, ge=128)
    max_packs: int | None = Field(default=None, ge=1)
    """For marks: at most so many packs, three in four of them for the rareness of their labels."""
    tuning_packs: int = Field(default=64, ge=1)
    """At most so many packs are tuned and measured on, evenly taken."""
    evidence_weight: float = Field(default=1.0, ge=0.0)
    frozen_baseline: bool = False
    """Train such a task head on the frozen backbone first, for as many minutes at most, to say what
    the adapter adds to it: the upper layers read everything once more."""
    checkpointing: bool = False
    """Compute layers again in the backward pass instead of keeping what they computed: less
    memory, about a third more time."""
    cache_lower: bool = True
    """Whether what lies below the adapted layers is computed once and kept on disk."""
    cache_gigabytes: float = Field(default=20.0, gt=0.0)
    """At most so much of it is kept; the rest is computed anew in each epoch."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """What is computed in, and how the backbone's weights are held unless they are quantised:
    `auto` is bfloat16 where the machine has instructions for it, and float32 elsewhere."""
    quantization: Literal["int8", "nf4"] | None = None
    """The frozen weights of the layers in eight bits, or in four (by bitsandbytes): less memory,
    a little slower, and the adapter learns to live with their rounding."""
    seed: int = 7
    data: tuple[DataSpec, ...] = Field(min_length=1)
    calibration: tuple[DataSpec, ...] = ()
    """For a choice that a head makes: questions that `data` does not ask. Of such ones a head is
    surer than it is right, which only others like them can tell."""

    @model_validator(mode="after")
    def _consistent(self) -> TrainSpec:
        methods = {self.method, *(self.search.method if self.search else ())}
        if self.quantization and "dora" in methods:
            raise ValueError("dora needs the weights' norms, which quantised ones do not have")
        if self.checkpointing and "prefix" in methods:
            raise ValueError(
                "a prefix lies in the keys that checkpointing would add again: leave checkpointing "
                "out, or choose another method"
            )
        if self.size and "prefix" in methods:
            raise ValueError("a prefix has no rank to be found: leave size out, set virtual_tokens")
        if self.layer_count and (self.layers.strip() != "auto" or self.importance == "validation"):
            raise ValueError(
                "layer_count is of `layers: auto` by gradient or attention alone: a search by "
                "validation finds how many, and layers that are named are as many as they are"
            )
        if any(source.repeat > 1 or source.negations for source in self.calibration):
            raise ValueError(
                "calibration rows are asked once and as they stand, as people ask: leave repeat "
                "and negations out there"
            )
        if self.dropout and not methods & DROPPING:
            raise ValueError(
                f"dropout acts on {', '.join(sorted(DROPPING))} alone, not on {self.method}: leave "
                "it out"
            )
        if self.search:
            self._check_sizes(self.search)
        return self

    def _check_sizes(self, search: SearchSpec) -> None:
        tried = search.method or (self.method,)
        if self.size and "head" in search.method:
            raise ValueError("a task head alone has no size to be found: leave size out")
        for method in tried if self.size else ():
            settled = "reduction_factor" if method == "bottleneck" else "rank"
            if settled in search.sizes(method):
                raise ValueError(
                    f"size: auto would overrule what search finds of {settled}: leave size out, or "
                    f"write `{settled}: []` in search"
                )
        for name in ("rank", "reduction_factor", "virtual_tokens"):
            choices = getattr(search, name) if name in search.model_fields_set else ()
            # A single value varies nothing: it may be meant for the given method.
            having = (*tried, self.method) if len(choices) == 1 else tried
            if choices and not any(name in SIZED_BY[method] for method in having):
                raise ValueError(
                    f"search.{name}: none of the tried methods has it ({', '.join(tried)})"
                )

    @property
    def finds_size(self) -> str | None:
        """The setting by which a training would find its own method or size, if there is one."""
        space = self.search
        sizes = space.sizes(self.method) if space else {}
        asked = {
            "size: auto": self.size == "auto",
            "search.method": bool(space and space.method),
            **{f"search.{name}": len(choices) > 1 for name, choices in sizes.items()},
        }
        return next((name for name, there in asked.items() if there), None)

    def with_rank(self, rank: int) -> TrainSpec:
        """The same with another rank, and `alpha` in the same ratio to it."""
        alpha = max(1, round(self.alpha * rank / self.rank))
        return self.model_copy(update={"rank": rank, "alpha": alpha})

    @property
    def rate(self) -> float:
        """The learning rate."""
        return self.learning_rate or RATES[self.method]


def steps_an_epoch(packs: int, packs_per_step: int) -> int:
    """Steps of one pass over the packs; the last of them may be of fewer."""
    return -(-packs // packs_per_step)


def changed_train_spec(path: Path, changes: Mapping[str, Any]) -> TrainSpec:
    """A `train.yaml` with some settings changed. Raises `SkillError` as `load_train_spec` does."""
    settings = load_train_spec(path).model_dump(exclude_unset=True, mode="json") | dict(changes)
    try:
        return TrainSpec.model_validate(settings)
    except ValidationError as error:
        raise SkillError(f"cannot be changed: {error}", where=str(path)) from error


def change_train_spec(path: Path, changes: Mapping[str, Any], into: Path) -> None:
    """Write a `train.yaml` with some settings changed, the rest as it stands, comments included.

    Raises `SkillError` for what `load_train_spec` would refuse.
    """
    load_train_spec(path)
    yaml = YAML()
    spec = yaml.load(path.read_text(encoding="utf-8"))
    spec.update(changes)
    with into.open("w", encoding="utf-8") as file:
        yaml.dump(spec, file)
    load_train_spec(into)


def load_train_spec(path: Path) -> TrainSpec:
    """Read a `train.yaml`. Raises `SkillError` with `file:line:column` and the offending key."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SkillError(
            "cannot read it", where=str(path), hint="a skill is trained from its train.yaml"
        ) from error
    try:
        value, written = YAML(typ="safe").load(text), YAML().load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        problem = error.problem or error.context
        raise SkillError(f"not valid YAML: {problem}", where=place) from error
    except YAMLError as error:
        raise SkillError(f"not valid YAML: {error}", where=str(path)) from error
    try:
        return TrainSpec.model_validate({} if value is None else value)
    except ValidationError as error:
        source = YamlSource(value, str(path), dict(_positions(written)))
        within: dict[str, type[_Frozen]] = {
            "search": SearchSpec,
            "data": DataSpec,
            "calibration": DataSpec,
        }
        keys = error.errors()[0]["loc"]
        of = within.get(str(keys[0]), TrainSpec) if len(keys) > 1 else TrainSpec
        raise source.error(error, SkillError, tuple(of.model_fields)) from error


def _positions(written: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, tuple[int, int]]]:
    """Where each key and list item begins, 1-based; anchors, which `parse_yaml` refuses, too."""
    if isinstance(written, CommentedMap):
        places = [(key, written.lc.key(key)) for key in written]
    elif isinstance(written, CommentedSeq):
        places = [(at, written.lc.item(at)) for at in range(len(written))]
    else:
        return
    for key, (line, column) in places:
        yield (*path, key), (line + 1, column + 1)
        yield from _positions(written[key], (*path, key))
