"""The built wheel carries the shipped skills and workflows, and works away from the checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SKILLS = sorted(path.parent.name for path in (ROOT / "skills").glob("*/SKILL.md"))
TRAINED = [n for n in SKILLS if (ROOT / "skills" / n / "adapter_model.safetensors").exists()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--quiet"]
    command += ["--disable-pip-version-check", "--target", str(target), str(wheel)]
    subprocess.run(command, check=True, capture_output=True)
    return target


def run(installed: Path, elsewhere: Path, code: str) -> str:
    """What the code prints in another folder, with the installed package first on the path."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(installed)!r})\n{code}"],
        cwd=elsewhere,
        env=os.environ | {"AGENTKIT_HOME": str(elsewhere / "home"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("name", SKILLS)
def test_it_carries_each_shipped_skill(names: set[str], name: str) -> None:
    folder = f"agentkit/_shipped/skills/{name}"
    assert {f"{folder}/SKILL.md", f"{folder}/skill.yaml"} <= names
    if name in TRAINED:
        assert f"{folder}/adapter_model.safetensors" in names
        assert f"{folder}/adapter_config.json" in names


def test_it_carries_the_workflows_with_their_playbooks(names: set[str]) -> None:
    for path in (ROOT / "workflows").rglob("*"):
        if path.suffix in (".yaml", ".md"):
            assert f"agentkit/_shipped/workflows/{path.relative_to(ROOT / 'workflows')}" in names


def test_it_carries_the_templates_the_types_marker_and_the_licence(names: set[str]) -> None:
    for path in (ROOT / "agentkit" / "report" / "templates").iterdir():
        assert f"agentkit/report/templates/{path.name}" in names
    assert "agentkit/py.typed" in names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_it_carries_no_data_sets_tests_or_leftovers(names: set[str]) -> None:
    for name in names:
        assert not name.startswith(("tests/", "benchmarks/", "examples/", "skills/"))
        assert not name.endswith((".jsonl.gz", ".pyc", ".bin", ".pt"))
        assert "/.fresh/" not in name
        assert "checkpoint" not in Path(name).parts


def test_no_text_in_it_names_the_folder_it_was_built_in(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if not name.endswith(".safetensors"):
                assert str(ROOT).encode() not in archive.read(name), name


def test_installed_it_finds_its_skills_and_workflows(installed: Path, tmp_path: Path) -> None:
    code = """
import agentkit, json
from pathlib import Path
from agentkit.skill.registry import shipped_folder
folder = shipped_folder()
print(json.dumps([agentkit.__file__, str(folder), sorted(p.name for p in folder.iterdir()),
                  sorted(p.name for p in (folder.parent / "workflows").glob("*.yaml"))]))
"""
    module, folder, skills, workflows = json.loads(run(installed, tmp_path, code))
    assert Path(module).parent == installed / "agentkit"
    assert Path(folder) == installed / "agentkit" / "_shipped" / "skills"
    assert skills == SKILLS
    assert workflows == sorted(path.name for path in (ROOT / "workflows").glob("*.yaml"))


def test_installed_it_loads_the_skills_that_are_trained(installed: Path, tmp_path: Path) -> None:
    if not TRAINED:
        pytest.skip("no shipped skill has its adapter yet")
    code = """
from agentkit.skill.folder import load_skill
from agentkit.skill.registry import shipped_folder
for folder in sorted(shipped_folder().iterdir()):
    if (folder / "adapter_model.safetensors").exists():
        print(load_skill(folder).name)
"""
    assert run(installed, tmp_path, code).split() == TRAINED


def test_installed_its_command_answers(installed: Path, tmp_path: Path) -> None:
    code = "from agentkit.cli import main; sys.argv = ['agentkit', 'skills', 'ls']; main()"
    shown = run(installed, tmp_path, code)
    assert all(name in shown for name in TRAINED)
