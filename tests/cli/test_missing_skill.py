"""The shipped contract review with one of its skills taken away: what that skill does is missing,
said to be, and made up by nothing else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from agentkit import models
from agentkit.settings import Settings
from agentkit.skill import registry
from agentkit.skill.folder import ADAPTER_WEIGHTS

pytestmark = pytest.mark.weights

ROOT = Path(__file__).parents[2]
PLAYBOOK = """\
# Rules

- **Must**: The receiving party may use confidential information only for the agreed purpose.
- **Should**: The agreement does not give the receiving party any licence.
"""
NDA = ROOT / "examples" / "documents" / "nda.md"


@pytest.mark.parametrize(
    ("taken", "missing", "there"),
    [
        ("contract-parsing", ("facts", "clauses"), ("reviews",)),
        ("compliance-review", ("reviews",), ("clauses",)),
        ("reporting", ("findings",), ("clauses", "reviews")),
    ],
)
def test_the_part_of_a_skill_that_is_gone_is_empty_with_a_note(
    call: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    taken: str,
    missing: tuple[str, ...],
    there: tuple[str, ...],
) -> None:
    shipped = registry.shipped_folder()
    assert shipped is not None
    skills = tmp_path / "shipped"
    shutil.copytree(shipped, skills)
    if any(not (folder / ADAPTER_WEIGHTS).is_file() for folder in skills.iterdir()):
        pytest.skip("a shipped skill is not trained")
    shutil.rmtree(skills / taken)
    monkeypatch.setattr(registry, "shipped_folder", lambda: skills)
    monkeypatch.chdir(tmp_path)
    playbook = tmp_path / "rules.md"
    playbook.write_text(PLAYBOOK, encoding="utf-8")
    document = tmp_path / "nda.md"
    document.write_text(NDA.read_text("utf-8")[:3000].rpartition("\n")[0], encoding="utf-8")
    values = {
        "home": tmp_path / "home",
        "backbone": models.path("smollm2-135m-instruct", Settings()),
        "encoder": models.path("all-minilm-l6-v2", Settings()),
    }
    inputs = {"document": document, "playbook": playbook, "explained_clauses": 1}
    code, out, err = call(
        ["run", ROOT / "workflows" / "contract_review.yaml", "--json"]
        + [part for pair in inputs.items() for part in ("--input", "{}={}".format(*pair))]
        + [part for pair in values.items() for part in ("--set", "{}={}".format(*pair))]
    )
    assert code == 0, err
    report = json.loads(out)
    assert taken not in report["run"]["skills"]
    for part in missing:
        assert report[part] == []
        assert report["notes"][part].startswith("step ")
    for part in there:
        assert report[part]
        assert part not in report["notes"]
    # Where no skill fits, nobody answers: the backbone is not even asked.
    routed = [route for route in report["routes"] if route["skill"] is None]
    assert routed
    assert all(route["abstained"] for route in routed)
    assert report["run"]["tokens"]["completion"] == 0 or taken != "reporting"
