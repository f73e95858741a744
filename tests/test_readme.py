"""The README shows code that is run, and figures that a command printed."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_python_workflow_is_the_example_that_is_run() -> None:
    script = (ROOT / "examples" / "workflow_in_20_lines.py").read_text(encoding="utf-8")
    shown = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert shown is not None
    assert shown.group(1).strip() == script[script.index("from pathlib") :].strip()


def test_the_yaml_workflow_is_sound(tmp_path: Path) -> None:
    from agentkit import load_spec

    shown = re.search(r"```yaml\n(name: .*?)```", README, re.DOTALL)
    assert shown is not None
    path = tmp_path / "workflow.yaml"
    path.write_text(shown.group(1), encoding="utf-8")
    assert list(load_spec(path).steps) == ["parse", "review"]


def test_every_command_shown_exists() -> None:
    from agentkit.cli.app import run

    commands = set(
        re.findall(r"^agentkit ((?:skills |models |runs )?[a-z-]+)", README, re.MULTILINE)
    )
    assert len(commands) >= 6
    for command in commands:
        assert run([*command.split(), "--help"]) == 0


@pytest.mark.parametrize("path", sorted((ROOT / "skills").glob("*/metrics.json")), ids=str)
def test_quality_figures_are_those_of_the_shipped_skill(path: Path) -> None:
    trained = json.loads(path.read_text(encoding="utf-8"))["tuning"]["trained"]
    for figure, value in trained.items():
        if isinstance(value, float):
            row = rf"\| {path.parent.name} \| {figure.replace('_', ' ')} \| [^|]* \| {value} \|"
            assert re.search(row, README), f"{figure} = {value}"
