"""What `import agentkit` promises: these names and no others."""

from __future__ import annotations

import importlib

import pytest

import agentkit

NAMES = [
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


def test_the_public_names_are_these() -> None:
    assert agentkit.__all__ == NAMES
    assert dir(agentkit) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_each_public_name_is_there_and_is_what_its_module_defines(name: str) -> None:
    value = getattr(agentkit, name)
    if name != "__version__":
        assert value.__name__ == name
        assert value is getattr(importlib.import_module(value.__module__), name)
        assert value.__doc__


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Agent'"):
        _ = agentkit.Agent


def test_the_version_is_the_installed_ones() -> None:
    assert agentkit.__version__[0].isdigit()
