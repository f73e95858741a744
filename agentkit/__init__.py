"""Many narrow, measured skills out of one small open model.

A skill is a trained adapter on a shared backbone; a controller picks one for each step of a
workflow and activates it in place. Names are loaded when they are first used, so importing the
package is cheap.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agentkit.engine.engine import Engine
    from agentkit.errors import AgentkitError
    from agentkit.kit import Kit
    from agentkit.prompt import build_prompt
    from agentkit.retrieval.loaders import document_from_text, load_document
    from agentkit.retrieval.playbook import load_playbook
    from agentkit.settings import Settings
    from agentkit.skill.folder import Skill, load_skill
    from agentkit.types import Document, Generation, Request, StepCall, StepResult
    from agentkit.workflow.builder import Workflow
    from agentkit.workflow.nodes import skill_node, skill_runnable
    from agentkit.workflow.records import document_reference
    from agentkit.workflow.spec import load_spec

__all__ = [
    "AgentkitError",
    "Document",
    "Engine",
    "Generation",
    "Kit",
    "Request",
    "Settings",
    "Skill",
    "StepCall",
    "StepResult",
    "Workflow",
    "__version__",
    "build_prompt",
    "document_from_text",
    "document_reference",
    "load_document",
    "load_playbook",
    "load_skill",
    "load_spec",
    "skill_node",
    "skill_runnable",
]

_HOMES = {
    "AgentkitError": "errors",
    "Document": "types",
    "Engine": "engine.engine",
    "Generation": "types",
    "Kit": "kit",
    "Request": "types",
    "Settings": "settings",
    "Skill": "skill.folder",
    "StepCall": "types",
    "StepResult": "types",
    "Workflow": "workflow.builder",
    "build_prompt": "prompt",
    "document_from_text": "retrieval.loaders",
    "document_reference": "workflow.records",
    "load_document": "retrieval.loaders",
    "load_playbook": "retrieval.playbook",
    "load_skill": "skill.folder",
    "load_spec": "workflow.spec",
    "skill_node": "workflow.nodes",
    "skill_runnable": "workflow.nodes",
}

try:
    __version__ = version("agentkit-skills")
except PackageNotFoundError:
    __version__ = "0+unknown"


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
