"""What a workflow says, as one frozen model behind both YAML and Python."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    PrivateAttr,
    StringConstraints,
    ValidationError,
    model_validator,
)

from agentkit.errors import InputError, WorkflowError
from agentkit.retrieval.filters import check_filters
from agentkit.skill.manifest import MAX_NAME
from agentkit.skill.manifest import NAME as SKILL_NAME
from agentkit.types import Json
from agentkit.workflow import yamlfile
from agentkit.workflow.yamlfile import Source

RESERVED = frozenset({"inputs", "steps", "item", "index", "run", "outputs", "report"})
"""Names that expressions and the graph's state use."""
IDENTIFIER = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")


def _identifier(name: str) -> str:
    if not IDENTIFIER.fullmatch(name):
        raise ValueError(
            f"{name!r} is not a name: a letter, then letters, digits and underscores, 64 at most"
        )
    return name


def _step_id(name: str) -> str:
    if name in RESERVED:
        raise ValueError(f"{name!r} is a reserved name: {', '.join(sorted(RESERVED))}")
    return _identifier(name)


def _skill_name(name: str) -> str:
    if not SKILL_NAME.fullmatch(name) or len(name) > MAX_NAME:
        raise ValueError(
            f"{name!r} is not a skill's name: lowercase letters, digits and single hyphens"
        )
    return name


def _filters(given: dict[str, Json]) -> dict[str, Json]:
    try:
        check_filters(given)
    except InputError as error:
        raise ValueError(str(error)) from error
    return given


Identifier = Annotated[str, AfterValidator(_identifier)]
StepId = Annotated[str, AfterValidator(_step_id)]
SkillName = Annotated[str, AfterValidator(_skill_name)]
Text = Annotated[str, StringConstraints(max_length=20_000)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class InputSpec(_Frozen):
    """One thing that a run is given."""

    type: Literal["document", "playbook", "text", "number", "boolean", "json", "list"] = "text"
    description: str = ""
    default: JsonValue = None
    required: bool = True
    """Without a default, a run must give it; otherwise it is `none`."""

    @property
    def must_be_given(self) -> bool:
        return self.required and self.default is None


class StepContext(_Frozen):
    """What a step is to be shown beside its own input."""

    index: Text | Annotated[list[Text], Field(min_length=1, max_length=16)] | None = None
    """`document`, a standing index by name or path, or a list of them: templates. By default what
    the skill says."""
    query: Text | None = None
    """Template of the query."""
    top_k: int | None = Field(default=None, ge=1, le=1000)
    budget: int | None = Field(default=None, ge=32)
    mode: Literal["auto", "whole", "windows", "excerpts", "none"] = "auto"
    filters: Annotated[dict[str, JsonValue], AfterValidator(_filters)] = Field(default_factory=dict)
    """Which chunks may be found: `document`, `source`, `page`, `heading`."""


class RetrySpec(_Frozen):
    """How often a step is tried, and how long to wait: the wait doubles each time."""

    attempts: int = Field(default=3, ge=1, le=10)
    delay_seconds: float = Field(default=1.0, ge=0.0, le=3600.0)


class StepSpec(_Frozen):
    """One step: a skill at work, or (`set`) values computed from expressions alone."""

    description: str = ""
    skill: SkillName = "auto"
    """`auto` (the controller picks), `base` (no adapter), or a skill's name."""
    instruction: Text = ""
    """Template; what the controller routes by and the skill is asked."""
    input: dict[str, JsonValue] = Field(default_factory=dict)
    """Templates, nested as you like."""
    for_each: Text | None = None
    """Expression that gives a list: the step runs once per item, all of them together."""
    when: Text | None = None
    """Expression: the step is skipped, and its value is `none`, if it is false."""
    needs: tuple[str, ...] | None = None
    """Steps to wait for; by default the one before. Steps that expressions name are added."""
    context: StepContext | None = None
    retry: RetrySpec | None = None
    on_uncertain: SkillName = "base"
    """`base`, `human`, `fail`, or a skill's name."""
    threshold: float | None = Field(default=None, ge=0.0, le=1.0)
    set: dict[str, JsonValue] | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if self.set is not None:
            given = self.model_fields_set - {"set", "description", "for_each", "when", "needs"}
            extra = sorted(
                name
                for name in given
                if getattr(self, name)
                != type(self).model_fields[name].get_default(call_default_factory=True)
            )
            if extra:
                raise ValueError(f"a step with set has no {', '.join(extra)}")
        elif self.skill == "auto" and not self.instruction.strip():
            raise ValueError("skill: auto needs an instruction to route by")
        return self


class WorkflowSpec(_Frozen):
    """Inputs, steps in order, and the outputs made of them."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9 _.-]*$", max_length=80)]
    description: str = ""
    inputs: dict[Identifier, InputSpec] = Field(default_factory=dict)
    steps: dict[StepId, StepSpec] = Field(min_length=1, max_length=500)
    outputs: dict[Identifier, JsonValue] = Field(default_factory=dict)
    report: dict[str, JsonValue] | None = None
    """Templates that the report is composed from."""

    _source: Source = PrivateAttr(default_factory=Source)

    @property
    def source(self) -> Source:
        """Where this workflow came from."""
        return self._source

    @classmethod
    def from_data(cls, data: Json, source: Source | None = None) -> Self:
        """Check plain data. Raises `WorkflowError` at the first fault, in the file's order."""
        source = source or Source()
        if not isinstance(data, Mapping):
            raise WorkflowError(
                "a workflow is a mapping with name, inputs, steps and outputs",
                where=source.where(()),
            )
        try:
            spec = cls.model_validate(data)
        except ValidationError as error:
            raise _at_its_place(error, source) from error
        spec._source = source
        return spec

    def to_data(self) -> dict[str, Any]:
        """Plain data without what is default; `from_data` gives the same workflow back."""
        data: dict[str, Any] = self.model_dump(mode="json", exclude_defaults=True)
        data["inputs"] = {
            name: {"type": entry.type, **entry.model_dump(mode="json", exclude_defaults=True)}
            for name, entry in self.inputs.items()
        }
        if not data["inputs"]:
            del data["inputs"]
        order = ["name", "description", "inputs", "steps", "outputs", "report"]
        return {key: data[key] for key in order if key in data}


def _at_its_place(error: ValidationError, source: Source) -> WorkflowError:
    faults = []
    for fault in error.errors(include_url=False):
        path = tuple(part for part in fault["loc"] if part != "[key]")
        message = str(fault["msg"]).removeprefix("Value error, ")
        if fault["type"] == "extra_forbidden":
            message = f"unknown key {path[-1]!r}"
        elif fault["type"] == "missing":
            message = f"{path[-1]!r} is missing"
        else:
            message = f"{'.'.join(map(str, path))}: {message}"
        position = source.keys.get(path) or (1 << 30, 0)
        faults.append((position, source.where(path), message))
    faults.sort(key=lambda fault: fault[0])
    _, where, message = faults[0]
    hint = f"and {len(faults) - 1} more faults" if len(faults) > 1 else None
    return WorkflowError(message, where=where, hint=hint)


def load_spec(path: Path) -> WorkflowSpec:
    """Read and check a workflow file. Raises `WorkflowError` with `file:line:column`."""
    from agentkit.workflow.program import Program

    file = yamlfile.load(path)
    spec = WorkflowSpec.from_data(file.data, file.source)
    Program.of(spec)
    return spec


def parse_spec(text: str, *, name: str = "<string>") -> WorkflowSpec:
    """Like `load_spec`, from YAML text."""
    from agentkit.workflow.program import Program

    file = yamlfile.loads(text, name=name)
    spec = WorkflowSpec.from_data(file.data, file.source)
    Program.of(spec)
    return spec


def to_yaml(spec: WorkflowSpec) -> str:
    """The workflow as YAML: `parse_spec(to_yaml(spec)) == spec`."""
    return yamlfile.dumps(spec.to_data())
