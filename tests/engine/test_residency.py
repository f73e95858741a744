"""Capacity: skills come and go under a byte budget, and a full queue says so."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from engine_material import done, plain_prompt

from agentkit.engine.backbone import load_backbone
from agentkit.engine.engine import Engine
from agentkit.errors import EngineError
from agentkit.settings import Settings
from agentkit.skill.folder import load_skill
from agentkit.testing import TinyBackbone, tiny_adapter
from agentkit.types import Completion, Generation, Request


def test_skills_above_the_budget_are_dropped_and_brought_back_with_the_same_answers(
    tiny: TinyBackbone, tmp_path: Path
) -> None:
    skills = [load_skill(tiny_adapter(tmp_path / f"s{n}", tiny, seed=n)) for n in range(1, 5)]
    backbone = load_backbone(tiny.path)
    request = Request(plain_prompt((5, 6, 7)), generation=Generation(8))
    with Engine(backbone, settings=Settings()) as roomy:
        for skill in skills:
            roomy.load(skill)
        size = roomy.skill_statistics.bytes // 4
        expected = [done(roomy, replace(request, adapter=skill.digest)).text for skill in skills]
    settings = Settings(adapter_memory_bytes=2 * size)
    with Engine(load_backbone(tiny.path), settings=settings) as engine:
        for skill in skills:
            engine.load(skill)
        assert set(engine.loaded) == {skill.digest for skill in skills[2:]}
        for _ in range(2):
            found = [done(engine, replace(request, adapter=s.digest)).text for s in skills]
            assert found == expected
            assert engine.skill_statistics.bytes <= settings.adapter_memory_bytes
        assert engine.skill_statistics.known == 4
        assert engine.skill_statistics.evictions >= 6
        # Asked for together they are all in use, and none of them is dropped.
        together = engine.run([replace(request, adapter=skill.digest) for skill in skills])
        assert [answer.text for answer in together] == expected


def test_a_full_queue_is_a_clear_error_or_a_wait(tiny: TinyBackbone) -> None:
    settings = Settings(max_waiting=2, max_batch=1)
    request = Request(plain_prompt((5, 6, 7)), generation=Generation(30))
    with Engine(load_backbone(tiny.path), settings=settings) as engine:
        errors = [f.exception() for f in engine.submit_all([request] * 30, timeout=0)]
        refused = [error for error in errors if error is not None]
        assert refused
        assert all("wait already" in str(error) for error in refused)
        assert all(isinstance(answer, Completion) for answer in engine.run([request] * 6))


def test_threads_that_ask_for_more_skills_than_fit_get_their_own_answers(
    tiny: TinyBackbone, tmp_path: Path
) -> None:
    skills = [load_skill(tiny_adapter(tmp_path / f"s{n}", tiny, seed=n)) for n in range(1, 4)]
    request = Request(plain_prompt((5, 6, 7)), generation=Generation(4))
    with Engine(load_backbone(tiny.path), settings=Settings(adapter_memory_bytes=1)) as engine:
        for skill in skills:
            engine.load(skill)
        alone = [done(engine, replace(request, adapter=skill.digest)).text for skill in skills]

        def ask(number: int) -> str | None:
            return done(engine, replace(request, adapter=skills[number % 3].digest)).text

        with ThreadPoolExecutor(6) as pool:
            found = list(pool.map(ask, range(24)))
        assert found == [alone[number % 3] for number in range(24)]
        assert engine.skill_statistics.evictions > 3


def test_a_skill_unloaded_while_it_answers_finishes_that_answer(
    tiny: TinyBackbone, tmp_path: Path
) -> None:
    skill = load_skill(tiny_adapter(tmp_path / "s", tiny, seed=1))
    with (
        Engine(load_backbone(tiny.path), settings=Settings()) as engine,
        ThreadPoolExecutor(1) as pool,
    ):
        engine.load(skill)
        request = Request(
            plain_prompt((5, 6, 7)), adapter=skill.digest, generation=Generation(max_tokens=60)
        )
        expected = done(engine, request).text
        unloading = []

        def began(_: str) -> None:
            if not unloading:
                unloading.append(pool.submit(engine.unload, skill.digest))

        assert done(engine, replace(request, on_text=began)).text == expected
        unloading[0].result(timeout=60)
        assert skill.digest not in engine.loaded
        with pytest.raises(EngineError, match="no skill with digest"):
            done(engine, request)


def test_a_skill_out_of_memory_cannot_be_asked_for_from_within_the_loop(
    tiny: TinyBackbone, tmp_path: Path
) -> None:
    skills = [load_skill(tiny_adapter(tmp_path / f"s{n}", tiny, seed=n)) for n in range(1, 3)]
    with Engine(load_backbone(tiny.path), settings=Settings(adapter_memory_bytes=1)) as engine:
        for skill in skills:
            engine.load(skill)
        inner = Request(plain_prompt((5,)), adapter=skills[0].digest, generation=Generation(2))
        outer = Request(plain_prompt((5, 6, 7)), generation=Generation(60))
        errors = []

        def ask(_: str) -> None:
            errors.append(engine.submit(inner).exception(timeout=5))

        done(engine, replace(outer, on_text=ask))
        assert isinstance(errors[0], EngineError)
        assert "on_text" in str(errors[0])
