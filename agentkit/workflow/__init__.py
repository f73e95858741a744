"""Workflows: one model for YAML and Python, compiled to LangGraph.

Names are loaded when they are first used, so that reading a workflow needs no LangGraph.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agentkit.workflow.builder import Workflow
    from agentkit.workflow.compile import CompiledWorkflow, compile_workflow
    from agentkit.workflow.graph import to_mermaid, to_svg
    from agentkit.workflow.nodes import skill_node, skill_runnable
    from agentkit.workflow.program import Program, validate
    from agentkit.workflow.run import Event, RunOutcome, resume, start, stream, stream_resume
    from agentkit.workflow.spec import (
        InputSpec,
        StepSpec,
        WorkflowSpec,
        load_spec,
        parse_spec,
        to_yaml,
    )
    from agentkit.workflow.store import RunStore

__all__ = [
    "CompiledWorkflow",
    "Event",
    "InputSpec",
    "Program",
    "RunOutcome",
    "RunStore",
    "StepSpec",
    "Workflow",
    "WorkflowSpec",
    "compile_workflow",
    "load_spec",
    "parse_spec",
    "resume",
    "skill_node",
    "skill_runnable",
    "start",
    "stream",
    "stream_resume",
    "to_mermaid",
    "to_svg",
    "to_yaml",
    "validate",
]

_HOME = {
    "builder": ("Workflow",),
    "compile": ("CompiledWorkflow", "compile_workflow"),
    "graph": ("to_mermaid", "to_svg"),
    "nodes": ("skill_node", "skill_runnable"),
    "program": ("Program", "validate"),
    "run": ("Event", "RunOutcome", "resume", "start", "stream", "stream_resume"),
    "spec": ("InputSpec", "StepSpec", "WorkflowSpec", "load_spec", "parse_spec", "to_yaml"),
    "store": ("RunStore",),
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}


def __getattr__(name: str) -> Any:
    module = _MODULE.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{module}"), name)
