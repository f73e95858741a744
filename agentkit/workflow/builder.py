"""A workflow written in Python: the same model as the YAML, put together call by call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

from agentkit.errors import WorkflowError
from agentkit.types import DocumentStore, Json, StepRunner
from agentkit.workflow.program import Program
from agentkit.workflow.spec import WorkflowSpec

if TYPE_CHECKING:
    from agentkit.workflow.compile import CompiledWorkflow
    from agentkit.workflow.inputs import Reader


class Workflow:
    """Stateful: collects inputs, steps and outputs; `spec()` gives the frozen workflow.

    ```python
    workflow = Workflow("review")
    workflow.input("document", "document")
    workflow.step("find", instruction="Find dates.", input={"document": "{{ inputs.document }}"})
    workflow.output("dates", "{{ steps.find.output }}")
    outcome = workflow.compile(runner, documents).run({"document": document})
    ```
    """

    def __init__(self, name: str, *, description: str = "") -> None:
        self._name = name
        self._description = description
        self._inputs: dict[str, dict[str, Json]] = {}
        self._steps: dict[str, dict[str, Json]] = {}
        self._outputs: dict[str, Json] = {}
        self._report: Mapping[str, Json] | None = None

    def input(
        self,
        name: str,
        type: str = "text",
        *,
        default: Json = None,
        required: bool = True,
        description: str = "",
    ) -> Self:
        """Declare an input. Raises `WorkflowError` if it is declared already."""
        self._new(name, self._inputs, "input")
        self._inputs[name] = {
            "type": type,
            "default": default,
            "required": required,
            "description": description,
        }
        return self

    def step(
        self,
        name: str,
        *,
        skill: str | None = None,
        instruction: str | None = None,
        input: Mapping[str, Json] | None = None,
        for_each: str | None = None,
        when: str | None = None,
        needs: Sequence[str] | None = None,
        context: Mapping[str, Json] | None = None,
        retry: Mapping[str, Json] | None = None,
        on_uncertain: str | None = None,
        threshold: float | None = None,
        set: Mapping[str, Json] | None = None,
        description: str | None = None,
    ) -> Self:
        """Add a step; the arguments are those of `StepSpec`. Raises `WorkflowError` if it is there
        already."""
        self._new(name, self._steps, "step")
        given: dict[str, Any] = {
            "description": description,
            "skill": skill,
            "instruction": instruction,
            "input": input,
            "for_each": for_each,
            "when": when,
            "needs": needs,
            "context": context,
            "retry": retry,
            "on_uncertain": on_uncertain,
            "threshold": threshold,
            "set": set,
        }
        self._steps[name] = {key: value for key, value in given.items() if value is not None}
        return self

    def output(self, name: str, value: Json) -> Self:
        """Declare an output by its template."""
        self._new(name, self._outputs, "output")
        self._outputs[name] = value
        return self

    def report(self, **parts: Json) -> Self:
        """Say what the report is composed from."""
        self._report = parts
        return self

    def spec(self) -> WorkflowSpec:
        """The workflow. Raises `WorkflowError` as loading its YAML would."""
        spec = WorkflowSpec.from_data(
            {
                "name": self._name,
                "description": self._description,
                "inputs": self._inputs,
                "steps": self._steps,
                "outputs": self._outputs,
                "report": self._report,
            }
        )
        Program.of(spec)
        return spec

    def compile(
        self,
        runner: StepRunner,
        documents: DocumentStore,
        *,
        readers: Mapping[str, Reader] | None = None,
    ) -> CompiledWorkflow:
        """Bind the workflow to what runs its steps and keeps its documents."""
        from agentkit.workflow.compile import compile_workflow

        return compile_workflow(self.spec(), runner, documents, readers=readers)

    def _new(self, name: str, there: Mapping[str, Any], kind: str) -> None:
        if name in there:
            raise WorkflowError(f"the {kind} {name!r} is there already", where=self._name)
