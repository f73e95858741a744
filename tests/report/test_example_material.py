"""The shipped playbooks and the example documents, read by the product's own readers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from agentkit.retrieval.loaders import load_document
from agentkit.retrieval.playbook import load_playbook
from agentkit.settings import Settings

ROOT = Path(__file__).parents[2]
DOCUMENTS = ROOT / "examples" / "documents"
PLAYBOOKS = [
    ROOT / "workflows" / "playbooks" / "general.md",
    ROOT / "examples" / "playbooks" / "nda.md",
    ROOT / "examples" / "playbooks" / "privacy.md",
]


@pytest.mark.parametrize("path", PLAYBOOKS, ids=lambda path: path.stem)
def test_a_playbook_gives_about_a_dozen_rules_of_every_severity(path):
    rules = load_playbook(path).rules

    assert 10 <= len(rules) <= 15
    assert {rule.severity for rule in rules} == {"must", "should", "may"}
    assert len({rule.text for rule in rules}) == len(rules)
    assert all(rule.text.endswith(".") and rule.heading for rule in rules)


@pytest.mark.parametrize(
    "name",
    [
        "nda.md",
        "privacy_notice.txt",
        "services_agreement.docx",
        "services_agreement.md",
        "services_agreement.pdf",
        "software_licence.html",
    ],
)
def test_a_document_is_read_whole_and_in_sections(name):
    document = load_document(DOCUMENTS / name, settings=Settings())

    assert 5_000 < len(document.text) < 15_000
    assert len(document.sections) >= 10


def words(name: str, folder: Path = DOCUMENTS) -> list[str]:
    return load_document(folder / name, settings=Settings()).text.replace("#", "").split()


def test_the_services_agreement_says_the_same_in_each_format():
    source = words("services_agreement.md")

    assert words("services_agreement.docx") == source
    assert words("services_agreement.pdf") == source


def test_the_script_writes_the_same_agreement_again(tmp_path):
    script = DOCUMENTS / "make_documents.py"
    subprocess.run([sys.executable, str(script), str(tmp_path)], check=True, timeout=60)

    for name in ("services_agreement.pdf", "services_agreement.docx"):
        assert words(name, tmp_path) == words(name)
