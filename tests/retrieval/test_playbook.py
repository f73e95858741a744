"""Playbooks."""

import json

import pytest

from agentkit.errors import InputError
from agentkit.retrieval.playbook import load_playbook, playbook_from_text

TEXT = """\
---
title: ours
---
# Our *rules*

Some words that are no rule.

## Confidentiality (must)

- The receiving party keeps the information
  confidential.
- [may] It may share it with [its advisers](https://example.com):
  - if they are bound by secrecy;
  - if they need it.

## Term

1. **Should**: The term is at most two years.
2. The agreement can be ended early.
3. Notices:
   - (must) They are in writing.
   - MUST: They are signed.
4. Fees are fixed.
   - [may] They may rise once a year.
- [ ] Must have a governing law.
"""


def rules(text):
    return [(r.id, r.severity, r.text, r.heading, r.line) for r in playbook_from_text(text).rules]


def test_each_list_item_is_a_rule_with_its_severity_heading_and_line():
    confidentiality, term = ("Our rules", "Confidentiality"), ("Our rules", "Term")
    assert rules(TEXT) == [
        ("r1", "must", "The receiving party keeps the information confidential.",
         confidentiality, 10),
        ("r2", "may", "It may share it with its advisers: if they are bound by secrecy; "
         "if they need it.", confidentiality, 12),
        ("r3", "should", "The term is at most two years.", term, 18),
        ("r4", "should", "The agreement can be ended early.", term, 19),
        ("r5", "must", "They are in writing.", (*term, "Notices"), 21),
        ("r6", "must", "They are signed.", (*term, "Notices"), 22),
        ("r7", "should", "Fees are fixed.", term, 23),
        ("r8", "may", "They may rise once a year.", term, 24),
        ("r9", "should", "Must have a governing law.", term, 25),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "marker", ["[must]", "(Must)", "**Must**:", "**Must:**", "MUST:", "*must*: ", "`must`: "]
)
def test_markers_are_read_in_every_form(marker):
    ((_, severity, text, _, _),) = rules(f"- {marker} Fees are fixed.")
    assert (severity, text) == ("must", "Fees are fixed.")


def test_a_deeper_heading_without_a_marker_keeps_the_severity_above_it():
    text = "# All (must)\n## Fees\n- Fixed.\n## Law [may]\n- Ours.\n# Other\n- Free."
    assert [severity for _, severity, *_ in rules(text)] == ["must", "may", "should"]


def test_line_numbers_hold_with_windows_line_ends():
    assert rules("# A\r\n\r\n- One.\r\n- Two.\r\n")[1][-1] == 4


def test_lists_in_code_and_in_comments_are_no_rules():
    assert len(rules("```\n- code\n```\n<!--\n- comment\n-->\n\n- Rule.")) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "p.md:1: the playbook is empty"),
        ("# Heading\n\nA paragraph.\n", "p.md:3: the playbook has no list item"),
        ("- One.\n- \n- Three.", "p.md:2: a rule without words"),
        ("- One.\n- [must]\n", "p.md:2: a rule without words"),
        ("- " + "x" * 3000, "p.md:1: a rule of 3,000 characters"),
    ],
)
def test_a_playbook_without_rules_is_refused_with_its_line(tmp_path, text, message):
    path = tmp_path / "p.md"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        load_playbook(path)
    assert message in str(caught.value)


def test_files_that_are_no_playbook_are_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        load_playbook(tmp_path / "none.md")
    with pytest.raises(InputError, match="cannot be read"):
        load_playbook(tmp_path)
    (tmp_path / "b.md").write_bytes(b"- one\n- \xff\n")
    with pytest.raises(InputError, match=r"b.md:2: the playbook is not UTF-8"):
        load_playbook(tmp_path / "b.md")
    (tmp_path / "c.md").write_bytes(b"- one\n" * 200_000)
    with pytest.raises(InputError, match="longer than"):
        load_playbook(tmp_path / "c.md")
    with pytest.raises(InputError, match="1001 rules"):
        playbook_from_text("- one\n" * 1001)


def test_deep_nesting_is_survived():
    deep = "\n".join("  " * depth + "- x" for depth in range(500))
    assert len(rules(deep)) == 1


def test_a_playbook_is_json():
    value = json.loads(json.dumps(playbook_from_text("# A\n- One.", source="p.md").to_json()))
    assert value["source"] == "p.md"
    assert value["rules"] == [
        {"id": "r1", "text": "One.", "severity": "should", "heading": ["A"], "line": 2}
    ]
