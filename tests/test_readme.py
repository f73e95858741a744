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
    assert list(load_spec(path).steps) == ["parse", "review", "reviews"]


def test_the_training_is_that_of_a_new_skill(tmp_path: Path) -> None:
    from agentkit.skill.template import skill_files
    from agentkit.training.spec import load_train_spec

    new, more = re.findall(
        r"```yaml\n(.*?method: .*?)```", README[README.index("## Train") :], re.DOTALL
    )
    assert new == skill_files("clause-summariser", "text")["train.yaml"]
    path = tmp_path / "train.yaml"
    path.write_text(more, encoding="utf-8")
    assert load_train_spec(path).search is not None


@pytest.mark.weights
def test_the_yaml_workflow_gives_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from agentkit import models
    from agentkit.cli.app import run
    from agentkit.settings import Settings

    shown = re.search(r"```yaml\n(name: .*?)```", README, re.DOTALL)
    assert shown is not None
    path = tmp_path / "nda_check.yaml"
    path.write_text(shown.group(1), encoding="utf-8")
    rules = tmp_path / "rules.md"
    rules.write_text("- The agreement is governed by the laws of a named place.\n", "utf-8")
    given = ["--input", f"document={ROOT / 'examples/documents/nda.md'}"]
    given += ["--input", f"playbook={rules}", "--out", str(tmp_path / "out")]
    parts = (("smollm2-135m-instruct", "backbone"), ("all-minilm-l6-v2", "encoder"))
    values = {part: models.resolve(name, Settings(), part) for name, part in parts}
    values["home"] = tmp_path / "home"
    sets = [text for key, value in values.items() for text in ("--set", f"{key}={value}")]
    monkeypatch.chdir(ROOT)
    assert run(["run", str(path), *given, *sets]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))
    assert report["facts"]
    (review,) = report["reviews"]
    assert review["rule"].startswith("The agreement is governed")


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
