"""What people teach the controller, and what that would change."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentkit.errors import InputError
from agentkit.routing.changes import Probe
from agentkit.routing.controller import Controller
from agentkit.routing.learning import (
    Learnt,
    Lesson,
    Taught,
    contested,
    fit,
    load_learnt,
    plan_learning,
    save_learnt,
    taught_by,
    teach,
)
from agentkit.types import Query

Skills = dict[str, tuple[str, list[str]]]

SKILLS: Skills = {
    "poet": ("Writes poems", ["write a poem", "a haiku on snow"]),
    "cook": ("Cooks meals", ["cook a soup", "bake some bread"]),
}

taught = st.builds(
    Taught,
    text=st.sampled_from(["write a poem", "Write  A poem", "cook a soup", "sing", "bake"]),
    skill=st.sampled_from(["poet", "cook", "gone", None]),
    at=st.integers(2000, 2030).map(lambda year: f"{year}-01-01T00:00:00.000Z"),
    source=st.just("run 1 step a"),
)
everything = st.lists(taught, max_size=12).map(lambda own: Learnt(tuple(own)))


def test_what_was_taught_is_an_utterance_of_its_skill() -> None:
    learnt = Learnt((Taught("compose an ode", "poet", "2026"),))
    assert learnt.applied(SKILLS)["poet"][1] == (
        "write a poem",
        "a haiku on snow",
        "compose an ode",
    )
    assert learnt.applied(SKILLS)["cook"][1] == ("cook a soup", "bake some bread")


def test_of_one_text_the_last_answer_counts_and_no_other_skill_keeps_it() -> None:
    learnt = Learnt((Taught("Write a  poem", "cook", "2026"), Taught("write a poem", None, "2025")))
    applied = learnt.applied(SKILLS)
    assert applied["poet"][1] == ("a haiku on snow",)
    assert applied["cook"][1] == ("cook a soup", "bake some bread", "Write a  poem")
    assert learnt.outside == ()
    assert learnt.until("2026").outside == ("write a poem",)
    assert learnt.until("2026").applied(SKILLS)["poet"][1] == ("a haiku on snow",)


@given(learnt=everything)
def test_no_text_is_an_utterance_of_two_skills_and_applying_twice_changes_nothing(
    learnt: Learnt,
) -> None:
    applied = learnt.applied(SKILLS)
    texts = [" ".join(text.lower().split()) for _, own in applied.values() for text in own]
    assert len(set(texts)) == len(texts)
    again = learnt.applied(applied)
    assert {name: set(own) for name, (_, own) in again.items()} == {
        name: set(own) for name, (_, own) in applied.items()
    }


@given(learnt=everything, year=st.integers(1999, 2031))
def test_the_controller_of_an_earlier_moment_does_not_know_what_was_taught_since(
    learnt: Learnt, year: int
) -> None:
    moment = f"{year}-01-01T00:00:00.000Z"
    later = [one for one in learnt.taught if one.at >= moment]
    before = learnt.until(moment)
    assert set(before.taught) | set(later) == set(learnt.taught)
    more = before.add([Taught("anything", "poet", moment)])
    assert more.until(moment) == before
    assert learnt.until(None) == learnt


@given(learnt=everything)
def test_a_written_file_says_the_same_when_read(
    learnt: Learnt, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("learnt") / "home" / "learnt.json"
    save_learnt(path, learnt)
    read = load_learnt(path)
    assert sorted(read.taught, key=str) == sorted(learnt.taught, key=str)
    save_learnt(path, read)
    assert load_learnt(path) == read


def test_without_a_file_nothing_was_taught(tmp_path: Path) -> None:
    assert load_learnt(tmp_path / "none.json") == Learnt()


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"version": 2}', '{"version": 1, "skills": [], "outside": []}']
    + [json.dumps({"version": 1, "skills": {"poet": [row]}, "outside": []}) for row in ("x", {})]
    + ['{"version": 1, "skills": {"poet": [{"text": 1, "at": "", "source": ""}]}, "outside": []}'],
)
def test_a_damaged_file_is_named_with_what_to_do(tmp_path: Path, content: str) -> None:
    path = tmp_path / "learnt.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match="cannot be read") as caught:
        load_learnt(path)
    assert caught.value.where == str(path)
    assert "move it away" in str(caught.value)


# ---------------------------------------------------------------- what learning would change


def lesson(text: str, skill: str | None, *, corrected: bool = True) -> Lesson:
    return Lesson(Query(text), skill, f"run {text[:3]}", corrected)


def test_a_correction_becomes_an_utterance_and_its_route_changes(
    encoder: Any, skills: Skills
) -> None:
    text = "mimsy borogoves outgrabe"
    earlier = [Probe(Query(text), "run 1 step find"), Probe(Query("hello"), "run 2 step x")]
    plan = plan_learning(encoder, skills, Learnt(), [lesson(text, "clause-finder")], earlier)
    assert [one.query.instruction for one in plan.lessons] == [text]
    assert (plan.judged, plan.right_before, plan.right_after) == (1, 0, 1)
    assert plan.right_held_out == 0
    assert plan.missed == ()
    (change,) = [c for c in plan.changes if c.probe.source == "run 1 step find"]
    assert (change.before.skill, change.after.skill) == (None, "clause-finder")
    assert plan.probes == 2 + sum(len(own) for _, own in skills.values())
    assert json.loads(json.dumps(plan.to_json())) == plan.to_json()
    assert plan.to_json()["accuracy_before"] == 0.0
    learnt = Learnt(tuple(taught_by(plan.lessons, "2026")))
    assert fit(encoder, skills, learnt).route(Query(text)).skill == "clause-finder"


def test_lessons_alike_teach_each_other(encoder: Any, skills: Skills) -> None:
    texts = [f"glean the covenants of {thing}" for thing in ("Acme", "Beta", "Gamma", "Delta")]
    given = [lesson(text, "clause-finder") for text in texts]
    plan = plan_learning(encoder, skills, Learnt(), given)
    assert plan.right_before < plan.right_held_out == 4


def test_what_is_known_or_accepted_is_not_learnt_again(encoder: Any, skills: Skills) -> None:
    own = skills["clause-finder"][1][0]
    learnt = Learnt((Taught("sing a song", None, "2026"), Taught("rhyme", "rule-checker", "2026")))
    given = [
        lesson(own.upper(), "clause-finder"),
        lesson("Sing a  song", None),
        lesson("rhyme", "rule-checker"),
        lesson("find the clauses please", "clause-finder", corrected=False),
    ]
    plan = plan_learning(encoder, skills, learnt, given)
    assert plan.lessons == ()
    assert plan.changes == ()
    assert plan.right_before == plan.right_after
    assert plan.judged == 4


def test_a_text_that_two_skills_name_is_still_to_be_told(encoder: Any, skills: Skills) -> None:
    own = skills["clause-finder"][1][0]
    description, utterances = skills["rule-checker"]
    both = {**skills, "rule-checker": (description, [*utterances, own])}
    plan = plan_learning(encoder, both, Learnt(), [lesson(own, "clause-finder")])
    assert [one.skill for one in plan.lessons] == ["clause-finder"]
    assert contested(own, "clause-finder", both, Learnt())
    taught = Learnt((Taught("rhyme", None, "2026"),))
    assert contested("Rhyme", "clause-finder", skills, taught)
    assert not contested("Rhyme", None, skills, taught)
    assert not contested(own, "clause-finder", skills, taught)


def test_what_two_processes_teach_at_once_is_all_kept(tmp_path: Path) -> None:
    path = tmp_path / "home" / "learnt.json"
    threads = [
        threading.Thread(target=teach, args=(path, [Taught(f"text {n}", "poet", f"20{n}")]))
        for n in range(10, 40)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {one.text for one in load_learnt(path).taught} == {f"text {n}" for n in range(10, 40)}


def test_several_answers_to_one_text_are_named_and_the_last_counts(
    encoder: Any, skills: Skills
) -> None:
    given = [lesson("do the thing", "rule-checker"), lesson("Do the thing", "clause-finder")]
    plan = plan_learning(encoder, skills, Learnt(), given)
    assert plan.conflicts == ("Do the thing",)
    assert [one.skill for one in plan.lessons] == ["clause-finder"]
    taken_back = [*given, lesson("do the thing", None, corrected=False)]
    assert plan_learning(encoder, skills, Learnt(), taken_back).lessons == ()


def test_a_lesson_that_takes_an_utterance_from_a_skill_shows_that_as_a_change(
    encoder: Any, skills: Skills
) -> None:
    own = skills["clause-finder"][1][0]
    plan = plan_learning(encoder, skills, Learnt(), [lesson(own, "rule-checker")])
    assert any(
        change.probe.query.instruction == own
        and change.lost
        and change.after.skill != "clause-finder"
        for change in plan.changes
    )


def test_a_lesson_that_would_not_be_heeded_is_named(encoder: Any, skills: Skills) -> None:
    """A step's threshold of its own is not moved by what is taught."""
    strict = Lesson(Query("glean the covenants", threshold=1.0), "clause-finder", "run 1 step a")
    plan = plan_learning(encoder, skills, Learnt(), [strict])
    assert plan.lessons == plan.missed == (strict,)
    assert plan.to_json()["missed"] == ["glean the covenants"]


def test_lessons_for_skills_that_are_not_here_and_without_text_wait(
    encoder: Any, skills: Skills
) -> None:
    plan = plan_learning(
        encoder, skills, Learnt(), [lesson("sing", "gone"), lesson(" ", "clause-finder")]
    )
    assert (plan.lessons, plan.judged) == ((), 0)
    assert plan.to_json()["accuracy_after"] is None


def test_nothing_learnt_is_the_controller_of_the_skills_alone(encoder: Any, skills: Skills) -> None:
    plain = Controller(encoder)
    plain.fit(skills)
    query = Query("find the clauses")
    assert fit(encoder, skills, Learnt()).explain(query) == plain.explain(query)
