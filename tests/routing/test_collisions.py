"""What a new skill means for those that are there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentkit.models import resolve
from agentkit.routing.changes import Probe, changes, utterance_probes
from agentkit.routing.collisions import COLLIDES, SAME_REQUEST, find_collisions
from agentkit.routing.controller import Controller
from agentkit.routing.encoder import SentenceEncoder
from agentkit.settings import Settings
from agentkit.types import Query

Skills = dict[str, tuple[str, list[str]]]

HAIKU = ("Writes haiku poems", ["write a haiku", "compose a haiku poem", "a haiku on snow"])


def hunter(skills: Skills) -> tuple[str, list[str]]:
    """A skill that wants what the clause finder is for."""
    description, utterances = skills["clause-finder"]
    return description, [f"please {text.lower()}" for text in utterances]


def test_a_skill_for_something_else_competes_with_nobody(encoder: Any, skills: Skills) -> None:
    found = find_collisions(encoder, skills, "haiku-writer", HAIKU)
    assert not found.collides
    assert all(one.competition < COLLIDES for one in found.competitors)
    assert found.lost == ()
    assert found.probes == sum(len(own) for _, own in skills.values())


def test_a_skill_for_the_same_requests_collides_and_the_clashing_utterances_are_named(
    encoder: Any, skills: Skills
) -> None:
    found = find_collisions(encoder, skills, "clause-hunter", hunter(skills))
    assert found.collides
    first = found.competitors[0]
    assert first.name == "clause-finder"
    assert first.competition >= COLLIDES
    texts = {*skills["clause-finder"][1], *hunter(skills)[1]}
    for clash in first.clashes:
        assert {clash.skill, clash.rival} == {"clause-finder", "clause-hunter"}
        assert clash.text in texts
        assert clash.nearest
        assert -1.0 <= clash.cosine <= 1.0
        assert clash.rival_score > clash.score - 0.1 or clash.cosine >= SAME_REQUEST
    leads = [clash.rival_score - clash.score for clash in first.clashes]
    assert leads == sorted(leads, reverse=True)
    copied = find_collisions(encoder, skills, "clause-hunter", skills["clause-finder"])
    assert {change.probe.utterance_of for change in copied.lost} >= {"clause-finder"}
    assert len(copied.competitors[0].duplicates) == len(skills["clause-finder"][1])


def test_an_utterance_that_two_skills_name_is_a_collision(encoder: Any, skills: Skills) -> None:
    shared = skills["clause-finder"][1][0]
    added = (HAIKU[0], [*HAIKU[1], f"  {shared.upper()} "])
    found = find_collisions(encoder, skills, "haiku-writer", added)
    competitor = {one.name: one for one in found.competitors}["clause-finder"]
    assert competitor.duplicates == (shared,)
    assert competitor.collides


def test_earlier_routes_that_would_change_are_named_with_their_place(
    encoder: Any, skills: Skills
) -> None:
    earlier = [
        Probe(Query("haiku snow haiku"), "run 1 step poem"),
        Probe(Query(hunter(skills)[1][0], candidates=("clause-finder",)), "run 2 step find"),
        Probe(Query("pay the electricity bill"), "run 3 step pay"),
    ]
    calm = find_collisions(encoder, skills, "haiku-writer", HAIKU, earlier)
    assert [(c.probe.source, c.before.skill, c.after.skill, c.lost) for c in calm.changes] == [
        ("run 1 step poem", None, "haiku-writer", False)
    ]
    assert not calm.collides
    found = find_collisions(encoder, skills, "clause-hunter", hunter(skills), earlier)
    (change,) = [c for c in found.changes if c.probe.source == "run 2 step find"]
    assert change.lost
    assert change.before.skill == "clause-finder"
    assert found.probes == calm.probes


def test_every_controller_that_is_compared_knows_what_was_taught_as_no_skills(
    encoder: Any, skills: Skills, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted: list[Sequence[str]] = []
    fit = Controller.fit

    def noted(self: Controller, given: Any, *, background: Sequence[str] = ()) -> None:
        fitted.append(background)
        fit(self, given, background=background)

    monkeypatch.setattr(Controller, "fit", noted)
    outside = ("sing a song", "pay the bill")
    find_collisions(encoder, skills, "haiku-writer", HAIKU, background=outside)
    assert len(fitted) > 2
    assert set(fitted) == {outside}


def test_a_skill_of_the_same_name_is_the_version_that_is_replaced(
    encoder: Any, skills: Skills
) -> None:
    same = find_collisions(encoder, skills, "clause-finder", skills["clause-finder"])
    assert same.changes == ()
    assert "clause-finder" not in {one.name for one in same.competitors}
    other = find_collisions(encoder, skills, "clause-finder", HAIKU, [Probe(Query("x"), "run 1")])
    assert "clause-finder" not in {one.name for one in other.competitors}


def test_the_first_skill_and_a_skill_without_utterances_are_looked_at_too(
    encoder: Any, skills: Skills
) -> None:
    alone = find_collisions(encoder, {}, "haiku-writer", HAIKU)
    assert (alone.competitors, alone.changes, alone.collides) == ((), (), False)
    bare = find_collisions(encoder, skills, "haiku-writer", (HAIKU[0], []))
    assert not bare.collides
    assert not find_collisions(encoder, skills, "haiku-writer", ("", [])).collides


@settings(max_examples=3, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_the_order_of_skills_and_utterances_does_not_matter(
    encoder: Any, skills: Skills, data: st.DataObject
) -> None:
    order = data.draw(st.permutations(sorted(skills)))
    shuffled = {name: skills[name] for name in order}
    one = find_collisions(encoder, skills, "clause-hunter", hunter(skills))
    two = find_collisions(encoder, shuffled, "clause-hunter", hunter(skills))
    assert one.to_json() == two.to_json()
    assert json.loads(json.dumps(one.to_json())) == one.to_json()


def test_the_same_fit_changes_nothing(encoder: Any, skills: Skills) -> None:
    controller = Controller(encoder)
    controller.fit(skills)
    assert changes(controller, controller, utterance_probes(skills)) == []


@pytest.mark.weights
def test_with_the_embedded_encoder_near_skills_collide_and_far_ones_do_not(skills: Skills) -> None:
    encoder = SentenceEncoder(resolve("all-minilm-l6-v2", Settings(), "encoder"))
    near = (
        "Finds clauses in contracts",
        [
            "find the clauses in this agreement",
            "which provisions does the contract have",
            "list the terms of the agreement",
            "locate the clause on termination",
        ],
    )
    far = (
        "Translates texts",
        [
            "translate this into French",
            "put the letter into German",
            "say it in Spanish",
            "how do you say good morning in Italian",
        ],
    )
    assert find_collisions(encoder, skills, "clause-hunter", near).collides
    assert not find_collisions(encoder, skills, "translator", far).collides
    others = {name: own for name, own in skills.items() if name != "rule-checker"}
    assert not find_collisions(encoder, others, "rule-checker", skills["rule-checker"]).collides
