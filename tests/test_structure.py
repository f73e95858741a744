"""The package's shape: layers, third parties in their place, and no shipped skill known to it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "agentkit"
MODULES = sorted(PACKAGE.rglob("*.py"))
SOURCES = [path for path in sorted(PACKAGE.rglob("*")) if path.suffix in (".py", ".j2", ".js")]

HOMES = {
    "torch": ("adapters/", "engine/", "training/", "testing.py"),
    "transformers": ("adapters/", "engine/", "training/", "testing.py"),
    "peft": ("adapters/", "engine/", "training/", "testing.py"),
    "sentence_transformers": ("routing/encoder.py", "retrieval/rerank_cross.py"),
    "langgraph": ("workflow/",),
    "langchain_core": ("workflow/",),
    "llguidance": ("engine/",),
    "lancedb": ("retrieval/",),
    "pdfplumber": ("retrieval/",),
    "docx": ("retrieval/",),
    "typer": ("cli/",),
    "sklearn": ("training/", "evaluation/"),
    "matplotlib": ("pictures.py",),
}
WHEN_CALLED = {
    ("agentkit.workflow.compile", "agentkit.workflow.run"),
    ("agentkit.workflow.spec", "agentkit.workflow.program"),
}
"""Functions that hand on to the next noun of the line; they load its module when called."""
COMMON_WORDS = ("Parties",)
"""Labels that are everyday words: only as a value of their own may they not occur."""


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports_of(path: Path) -> Iterator[str]:
    """Every module that a file imports, wherever in it the import stands."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def needs_of(path: Path, names: set[str]) -> set[str]:
    """The modules that a file needs to run: of `from package import module` the module alone."""
    needed = set()
    typing_only = {
        id(inner)
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree_of(path)):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            needed |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                needed.add(inner if inner in names else node.module)
    return needed & names


# ---------------------------------------------------------------- imports


def test_imports_point_downward() -> None:
    flags = ("--no-cache", "--no-logo")
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from importlinter.cli import lint_imports_command as c; c()",
            *flags,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def test_no_module_imports_itself_in_a_circle() -> None:
    names = {name_of(path) for path in MODULES}
    graph: dict[str, set[str]] = defaultdict(set)
    for path in MODULES:
        if path == PACKAGE / "__init__.py":
            continue  # it loads its names when they are first used
        name = name_of(path)
        late = {needed for needed in names if (name, needed) in WHEN_CALLED}
        graph[name] = needs_of(path, names) - {"agentkit", name} - late
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_third_parties_stay_in_their_place() -> None:
    strays = [
        f"{path.relative_to(PACKAGE)}: {module}"
        for path in MODULES
        for module in imports_of(path)
        if (homes := HOMES.get(module.partition(".")[0]))
        and not str(path.relative_to(PACKAGE)).startswith(homes)
    ]
    assert not strays


@pytest.mark.parametrize("module", ["agentkit", "agentkit.cli", "agentkit.kit"])
def test_importing_it_loads_no_model_library(module: str) -> None:
    heavy = ("torch", "transformers", "peft", "lancedb", "sentence_transformers", "langgraph")
    code = f"import sys, {module}; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


# ---------------------------------------------------------------- modules


def test_modules_have_fewer_than_four_hundred_lines() -> None:
    lengths = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in MODULES}
    assert not {name: length for name, length in lengths.items() if length >= 400}


def test_every_module_says_what_it_is() -> None:
    assert not [str(path) for path in MODULES if not ast.get_docstring(tree_of(path))]


def test_a_broad_except_raises_again_or_gives_its_reason() -> None:
    broad = {"Exception", "BaseException"}
    found = []
    for path in MODULES:
        lines = path.read_text(encoding="utf-8").splitlines()
        for node in ast.walk(tree_of(path)):
            if not isinstance(node, ast.ExceptHandler):
                continue
            caught = broad
            if node.type is not None:
                caught = {n.id for n in ast.walk(node.type) if isinstance(n, ast.Name)}
            last = node.body[-1]
            passed_on = isinstance(last, ast.Raise) and last.exc is None
            reason = re.search(r"# noqa: BLE001 -- \S+", lines[node.lineno - 1])
            if caught & broad and not (reason or passed_on):
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not found


def test_input_is_never_checked_by_assert() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in MODULES
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Assert)
    ]
    assert not found


def test_no_module_runs_code_or_reads_pickles() -> None:
    """`eval`, `exec`, pickle, and `torch.load`; `trust_remote_code` is only ever False."""
    found = []
    for path in MODULES:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                if called in ("eval", "exec", "torch.load") or called.startswith("pickle."):
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno}: {called}")
                for keyword in node.keywords:
                    if keyword.arg == "trust_remote_code":
                        assert ast.unparse(keyword.value) == "False"
    assert not found


# ---------------------------------------------------------------- it knows no shipped skill


def shipped_words() -> dict[str, str]:
    """Names of skills, of labels and choices, and the rules of the shipped playbooks."""
    words: dict[str, str] = {}
    for path in sorted((ROOT / "skills").glob("*/skill.yaml")):
        manifest = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
        name = path.parent.name
        words[name] = "the name of a skill"
        for label in manifest.get("answer", {}).get("labels", ()):
            words[label["name"]] = f"a label of {name}"
        for utterance in manifest.get("utterances", ()):
            words[utterance] = f"an utterance of {name}"
    for path in sorted((ROOT / "workflows").rglob("*.md")):
        for line in path.read_text(encoding="utf-8").splitlines():
            if item := re.match(r"\s*(?:[-*+]|\d+[.)])\s+(.+)", line):
                words[item[1].strip()] = f"a rule of {path.name}"
    return words


def test_no_shipped_skill_category_or_rule_occurs_in_the_package() -> None:
    words = shipped_words()
    assert len(words) > 50
    texts = {path: " ".join(path.read_text(encoding="utf-8").split()) for path in SOURCES}
    found = []
    for word, what in words.items():
        pattern = re.compile(rf"(?<![\w-]){re.escape(word)}(?![\w-])", re.IGNORECASE)
        if word in COMMON_WORDS:
            pattern = re.compile(rf"([\"']){re.escape(word)}\1", re.IGNORECASE)
        found += [
            f"{path.relative_to(ROOT)}: {word!r} is {what}"
            for path, text in texts.items()
            if pattern.search(text)
        ]
    assert not found


def test_the_package_names_no_machine_and_no_home() -> None:
    home = re.compile(r"(?<![\w.])/(?:home|root|Users|work)/\w|localhost:\d")
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in SOURCES
        for match in home.finditer(path.read_text(encoding="utf-8"))
    ]
    assert not found


def test_every_test_file_has_a_name_of_its_own() -> None:
    """pytest imports test files by their base name where a folder is no package."""
    names: dict[str, list[Path]] = defaultdict(list)
    for path in (ROOT / "tests").rglob("test_*.py"):
        if not (path.parent / "__init__.py").exists():
            names[path.name].append(path)
    assert not {name: paths for name, paths in names.items() if len(paths) > 1}
