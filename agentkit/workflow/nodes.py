"""One skill inside somebody else's LangGraph graph or LangChain chain."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from langchain_core.runnables import Runnable, RunnableConfig

from agentkit.types import ContextSpec, Json, StepCall, StepResult, StepRunner
from agentkit.workflow.records import at_step
from agentkit.workflow.steps import run_calls


def skill_node(
    runner: StepRunner,
    skill: str = "auto",
    *,
    input: Mapping[str, str],
    output: str,
    instruction: str = "",
    context: ContextSpec | None = None,
    on_uncertain: str = "base",
) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """A node for `StateGraph.add_node`.

    `input` gives each field of the skill's input the state key that it is read from; the skill's
    output is written to the state key `output`. Raises what the step raised.
    """
    runnable = skill_runnable(
        runner, skill, instruction=instruction, context=context, on_uncertain=on_uncertain
    )

    def node(state: Mapping[str, Any]) -> dict[str, Any]:
        return {output: runnable.invoke({field: state[key] for field, key in input.items()})}

    node.__name__ = skill
    return node


def skill_runnable(
    runner: StepRunner,
    skill: str = "auto",
    *,
    instruction: str = "",
    context: ContextSpec | None = None,
    on_uncertain: str = "base",
) -> SkillRunnable:
    """A Runnable from a skill's input (a mapping) to its output; `batch` runs rows together."""
    call = StepCall(
        step=skill,
        instruction=instruction,
        input={},
        skill=skill,
        context=context,
        on_uncertain=on_uncertain,
    )
    return SkillRunnable(runner, call)


class SkillRunnable(Runnable[Mapping[str, Json], Json]):
    """A skill as a LangChain Runnable."""

    def __init__(self, runner: StepRunner, call: StepCall) -> None:
        self._runner = runner
        self._call = call
        self.name = call.skill

    def invoke(
        self, input: Mapping[str, Json], config: RunnableConfig | None = None, **kwargs: Any
    ) -> Json:
        """The skill's output. Raises what the step raised."""
        return self._call_with_config(self._one, input, config, run_type="chain")

    def batch(
        self,
        inputs: Sequence[Mapping[str, Json]],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[Json]:
        """The outputs in order; all rows are given to the engine together."""
        outputs: list[Json] = []
        for result in self._run(inputs):
            if isinstance(result, Exception) and not return_exceptions:
                raise result
            outputs.append(result if isinstance(result, Exception) else result.output)
        return outputs

    def _one(self, given: Mapping[str, Json]) -> Json:
        (result,) = self._run([given])
        if isinstance(result, Exception):
            raise result
        return result.output

    def _run(self, rows: Sequence[Mapping[str, Json]]) -> list[StepResult | Exception]:
        if not rows:
            return []
        calls = [replace(self._call, input=dict(row)) for row in rows]
        return [
            at_step(result, self._call.step) if isinstance(result, Exception) else result
            for result in run_calls(self._runner, calls)
        ]
