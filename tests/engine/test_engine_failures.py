"""A computation that breaks off: those who wait for it are told, and the engine goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from engine_material import QUESTIONS, Prompts, done

from agentkit.engine import runner
from agentkit.engine.engine import Engine
from agentkit.engine.tree import Tree
from agentkit.errors import EngineError
from agentkit.skill.folder import Skill
from agentkit.types import Completion, Generation, Request

OTHER = ("Quite another paper, about a boiler that is cleaned in May and in June.",) * 6


def once(work: Callable[..., Any]) -> Callable[..., Any]:
    """The same, but for its first call, which finds no memory."""
    calls: list[int] = []

    def called(*given: Any, **more: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("out of memory")
        return work(*given, **more)

    return called


def asked(prompts: Prompts, skills: dict[str, Skill]) -> list[Request]:
    """Something written, scored and read, over two documents."""
    written = Request(
        prompts(), adapter=skills["plain"].digest, generation=Generation(max_tokens=6)
    )
    chooser = Request(prompts(QUESTIONS[1]), adapter=skills["chooser"].digest, read=True)
    return [
        written,
        replace(written, prompt=prompts(QUESTIONS[2]), choices=("yes", "no")),
        replace(chooser, read=False, choices=("yes", "no")),
        chooser,
        replace(written, prompt=prompts(sentences=OTHER), choices=("yes", "no")),
    ]


def same(one: Completion, other: Completion) -> bool:
    if one.reading is not None and other.reading is not None:
        return bool((abs(one.reading.choices - other.reading.choices) < 1e-5).all())
    return one.text == other.text and one.choices == pytest.approx(other.choices)


@pytest.mark.parametrize(
    ("where", "what"), [(runner, "logits"), (runner, "hidden_states"), (Tree, "fork")]
)
def test_a_forward_that_fails_fails_those_who_wait_for_it_and_no_later_one(
    engine: Engine,
    skills: dict[str, Skill],
    prompts: Prompts,
    monkeypatch: pytest.MonkeyPatch,
    where: Any,
    what: str,
) -> None:
    requests = asked(prompts, skills)
    wanted = [done(engine, request) for request in requests]
    monkeypatch.setattr(where, what, once(getattr(where, what)))
    futures = engine.submit_all(requests)
    errors = [future.exception(timeout=60) for future in futures]
    failed = [error for error in errors if error is not None]
    assert failed
    assert all(isinstance(error, EngineError) for error in failed)
    assert all("out of memory" in str(error) for error in failed)
    for request, completion in zip(requests, wanted, strict=True):
        assert same(done(engine, request), completion)


def test_an_answer_without_any_choice_leaves_nothing_for_the_next_question(
    engine: Engine, skills: dict[str, Skill], prompts: Prompts
) -> None:
    digest = skills["plain"].digest
    free = Request(prompts(), adapter=digest, generation=Generation(max_tokens=6))
    scored = replace(free, choices=("yes", "no"))
    wanted = [done(engine, one) for one in (free, scored)]
    for number, request in enumerate((free, scored)):
        sentences = (*OTHER, f"Copy {number}.")
        fresh = replace(request, prompt=prompts(sentences=sentences))
        only = replace(fresh, schema={"const": "yes"}, choices=None)
        assert done(engine, only).text == '"yes"'
        after = done(engine, fresh)
        again = replace(request, prompt=prompts(sentences=(*sentences, "More.")))
        done(engine, again)  # another document's tree takes its place
        assert same(done(engine, fresh), after)
        assert same(done(engine, request), wanted[number])


def test_an_answer_without_any_choice_beside_a_question_whose_instructions_are_long(
    engine: Engine, skills: dict[str, Skill], prompts: Prompts
) -> None:
    digest = skills["plain"].digest
    only = Request(
        prompts(sentences=OTHER),
        adapter=digest,
        generation=Generation(max_tokens=6),
        schema={"const": "yes"},
    )
    long = prompts(sentences=OTHER, instructions="Say it, as well as you can. " * 30)
    asked = Request(long, adapter=digest, generation=Generation(max_tokens=6))
    first, second = engine.run([only, asked])
    assert isinstance(first, Completion)
    assert isinstance(second, Completion), second
    assert second.text == done(engine, asked).text
