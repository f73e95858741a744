"""Every example document loads, and every example script does what its docstring says."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from agentkit import models
from agentkit.cli.job import read_rows
from agentkit.retrieval.loaders import load_document
from agentkit.retrieval.playbook import load_playbook
from agentkit.settings import Settings
from agentkit.skill.folder import ADAPTER_WEIGHTS
from agentkit.skill.registry import shipped_folder

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
DOCUMENTS = sorted(p for p in (EXAMPLES / "documents").iterdir() if p.suffix != ".py")
PLAYBOOKS = sorted((EXAMPLES / "playbooks").iterdir())
VERDICTS = ("entailed", "contradicted", "not_mentioned")


def run_script(name: str, home: Path) -> str:
    """The script's output, run as a process from elsewhere with a home of its own."""
    settings = Settings()
    environment = {
        **os.environ,
        "AGENTKIT_HOME": str(home),
        "AGENTKIT_BACKBONE": str(models.resolve("smollm2-135m-instruct", settings, "backbone")),
        "AGENTKIT_ENCODER": str(models.resolve("all-minilm-l6-v2", settings, "encoder")),
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name)],
        cwd=home,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def shipped() -> None:
    """The shipped skills; tests that use them are skipped where they are not trained yet."""
    folder = shipped_folder()
    skills = [] if folder is None else [p for p in folder.iterdir() if (p / "SKILL.md").is_file()]
    untrained = sorted(p.name for p in skills if not (p / ADAPTER_WEIGHTS).is_file())
    if untrained or not skills:
        pytest.skip(f"shipped skills without an adapter: {', '.join(untrained) or 'all'}")


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_an_example_document_is_read_without_a_warning(path: Path) -> None:
    document = load_document(path, settings=Settings())
    assert len(document.text) > 1000
    assert len(document.spans) > 20
    assert len(document.sections) > 3
    assert [text for text in document.warnings if "page headers or footers" not in text] == []


def test_the_services_agreement_says_the_same_in_all_of_its_formats() -> None:
    texts = [
        load_document(
            EXAMPLES / "documents" / f"services_agreement.{ending}", settings=Settings()
        ).text
        for ending in ("md", "docx", "pdf")
    ]
    words = [{word.strip("#*_") for word in text.split()} for text in texts]
    for other in words[1:]:
        assert len(words[0] & other) > 0.95 * len(words[0])


@pytest.mark.parametrize("path", PLAYBOOKS, ids=lambda path: path.name)
def test_an_example_playbook_gives_rules_that_say_how_much_they_matter(path: Path) -> None:
    rules = load_playbook(path).to_json()["rules"]
    assert len(rules) >= 5
    assert all(rule["text"].endswith(".") for rule in rules)
    assert {rule["severity"] for rule in rules} == {"must", "should", "may"}


def test_the_batch_names_four_documents_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    rows = read_rows(EXAMPLES / "batch.jsonl")
    assert len({inputs["document"] for _, inputs in rows}) == 4
    assert all(Path(place).is_file() for _, inputs in rows for place in inputs.values())


def test_the_workflow_in_twenty_lines_has_at_most_twenty() -> None:
    text = (EXAMPLES / "workflow_in_20_lines.py").read_text(encoding="utf-8")
    docstring = ast.parse(text).body[0]
    code = text.splitlines()[docstring.end_lineno :]
    assert len([line for line in code if line.strip() and not line.strip().startswith("#")]) <= 20


@pytest.mark.weights
def test_the_workflow_in_twenty_lines_prints_facts_and_a_verdict_for_each_rule(
    shipped: None, tmp_path: Path
) -> None:
    lines = run_script("workflow_in_20_lines.py", tmp_path).splitlines()
    reviewed = [line.split(None, 1) for line in lines if line.strip().startswith(VERDICTS)]
    rules = load_playbook(EXAMPLES / "playbooks" / "nda.md").to_json()["rules"]
    assert [rule for _, rule in reviewed] == [rule["text"] for rule in rules]
    contract = load_document(EXAMPLES / "documents" / "nda.md", settings=Settings()).text
    facts = [line.partition(": ")[2] for line in lines[: -len(rules)]]
    assert facts
    assert all(value in contract for value in facts)


@pytest.mark.weights
def test_a_dropped_in_skill_is_listed_routed_to_answers_and_goes_again(tmp_path: Path) -> None:
    name = "clause-summariser"
    before, during, after = (
        run_script("drop_in_skill.py", tmp_path)
        .replace("taken out:", "dropped in:")
        .split("dropped in:")
    )
    assert name not in before
    assert name in during.splitlines()[0]
    assert f"-> {name} (" in during
    # Python spells its words: between quotes of either kind, and they may begin with one.
    assert re.search(rf"{name} answers: ['\"]+\w", during)
    assert name not in after


@pytest.mark.weights
def test_skills_and_a_workflow_work_as_nodes_of_a_plain_langgraph_graph(
    shipped: None, tmp_path: Path
) -> None:
    letter = run_script("skill_in_langgraph.py", tmp_path)
    assert letter.startswith("Parties: ")
    verdicts = [line for line in letter.splitlines() if line.startswith(VERDICTS)]
    assert len(verdicts) == 2
    contract = load_document(EXAMPLES / "documents" / "nda.md", settings=Settings()).text
    quotes = [line.strip()[1:-1] for line in letter.splitlines() if line.startswith('    "')]
    assert all(quote in contract for quote in quotes)


@pytest.mark.weights
def test_the_engine_answers_for_two_skills_and_the_bare_backbone(
    shipped: None, tmp_path: Path
) -> None:
    out = run_script("call_engine.py", tmp_path)
    said = dict(line.split(": ", 1) for line in out.splitlines() if ": " in line)
    assert said["contract-parsing"].startswith('{"clauses": [')
    assert said["compliance-review"].startswith(tuple(f'{{"verdict": "{v}"' for v in VERDICTS))
    constrained = ast.literal_eval(said["constrained"])
    assert constrained["kind"] == "non-disclosure agreement"
    assert len(said["streamed"].split()) > 5
    likelihood = json.loads(said["likelihood"].replace("'", '"'))
    assert likelihood["secrets"] > 0.9
