"""Limits, cancellation and faults: a clear error for the one, the right answer for the others."""

import asyncio
from concurrent.futures import CancelledError as FutureCancelled
from dataclasses import replace
from threading import Event

import pytest
from engine_material import SCHEMA, SENTENCES, Prompts, done, plain_prompt

from agentkit.engine.backbone import Backbone
from agentkit.engine.engine import Engine
from agentkit.errors import AdapterError, CancelledError, EngineError, LimitError
from agentkit.settings import Settings
from agentkit.skill.folder import Skill
from agentkit.types import Completion, Generation, Request

LONG = {"type": "string", "minLength": 600}
"""Nothing can end the answer before some hundred tokens."""


@pytest.mark.parametrize("max_tokens", [0, -1, 1_000_000])
def test_an_impossible_answer_length_is_a_clear_error(
    engine: Engine, prompts: Prompts, max_tokens: int
) -> None:
    with pytest.raises(LimitError, match="from 1 to the context's 1024"):
        done(engine, Request(prompts(), generation=Generation(max_tokens=max_tokens)))


def test_a_prompt_longer_than_the_context_is_a_clear_error_and_the_next_is_right(
    engine: Engine, prompts: Prompts
) -> None:
    good = Request(prompts(), generation=Generation(max_tokens=5))
    before = done(engine, good)
    long = prompts(sentences=SENTENCES * 40)
    assert len(long.ids) > 1024
    with pytest.raises(LimitError, match="context 1024"):
        done(engine, Request(long))
    with pytest.raises(LimitError, match="limit is 1024"):
        engine.encode(long.prompt)
    assert done(engine, good).text == before.text


def test_an_answer_ends_where_the_context_does(engine: Engine) -> None:
    request = Request(plain_prompt((7,) * 1020), generation=Generation(max_tokens=100))
    completion = done(engine, request)
    assert completion.usage.completion_tokens <= 4
    with pytest.raises(LimitError, match="fills the whole context"):
        done(engine, Request(plain_prompt((7,) * 1024)))
    with pytest.raises(LimitError, match="fits into 4 tokens"):
        done(engine, replace(request, schema=SCHEMA))


def test_an_error_stands_in_its_own_place(
    engine: Engine, skills: dict[str, Skill], prompts: Prompts
) -> None:
    prompt = prompts()

    def broken(_: str) -> None:
        raise KeyError("the caller's own")

    good = Request(prompt, generation=Generation(max_tokens=5))
    found = engine.run(
        [
            good,
            replace(good, adapter="0" * 64),
            replace(good, schema=SCHEMA),
            replace(good, on_text=broken),
            replace(good, read=True),
            Request(prompt, adapter=skills["plain"].digest, read=True),
            replace(good, choices=("", "x")),
            good,
        ]
    )
    kinds = [Completion, EngineError, LimitError, EngineError, AdapterError, AdapterError]
    assert [type(outcome) for outcome in found] == [*kinds, EngineError, Completion]
    assert found[0].text == found[-1].text
    assert isinstance(found[3].__cause__, KeyError)


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_the_loop_outlives_anything_that_a_caller_raises(engine: Engine, prompts: Prompts) -> None:
    def leave(_: str) -> None:
        raise SystemExit(3)

    request = Request(prompts(), generation=Generation(max_tokens=5))
    with pytest.raises(EngineError, match="SystemExit"):
        done(engine, replace(request, on_text=leave))
    assert done(engine, request).text


def test_a_cancelled_request_stops_at_the_next_token(engine: Engine, prompts: Prompts) -> None:
    started, seen = Event(), []

    def on_text(piece: str) -> None:
        seen.append(piece)
        started.set()

    long = Request(prompts(), schema=LONG, generation=Generation(max_tokens=700), on_text=on_text)
    future = engine.submit(long)
    assert started.wait(30)
    assert future.cancel()
    with pytest.raises(FutureCancelled):
        future.result()
    done(engine, Request(prompts(), generation=Generation(max_tokens=2)))  # its turn has come
    count = len(seen)
    done(engine, Request(prompts(), generation=Generation(max_tokens=2)))
    assert len(seen) == count


def test_async_tasks_get_their_solo_answers_and_one_that_is_cancelled_stops(
    engine: Engine, skills: dict[str, Skill], prompts: Prompts
) -> None:
    ask = [
        Request(prompts(), adapter=adapter, generation=Generation(max_tokens=6))
        for adapter in (None, *(skill.digest for skill in skills.values()))
    ]
    solo = [done(engine, request).text for request in ask]
    seen: list[str] = []

    async def main() -> list[str]:
        started = asyncio.Event()
        loop = asyncio.get_running_loop()

        def on_text(piece: str) -> None:
            seen.append(piece)
            loop.call_soon_threadsafe(started.set)

        long = Request(
            prompts(), schema=LONG, generation=Generation(max_tokens=700), on_text=on_text
        )
        task = asyncio.wrap_future(engine.submit(long))
        await started.wait()
        found = await asyncio.gather(*(asyncio.wrap_future(engine.submit(one)) for one in ask * 2))
        assert not task.done()
        task.cancel()
        return [completion.text for completion in found]

    assert asyncio.run(main()) == solo * 2
    done(engine, ask[0])  # its turn has come
    count = len(seen)
    done(engine, ask[0])
    assert len(seen) == count


def test_closing_a_stream_stops_the_answer(engine: Engine, prompts: Prompts) -> None:
    request = Request(prompts(), schema=LONG, generation=Generation(max_tokens=700))
    with engine.stream(request) as stream:
        next(stream)
    with pytest.raises(CancelledError):
        stream.completion()
    assert "".join(stream) == ""
    assert done(engine, Request(prompts(), generation=Generation(max_tokens=3))).text


def test_a_stream_raises_what_went_wrong(engine: Engine, prompts: Prompts) -> None:
    with pytest.raises(LimitError):
        next(engine.stream(Request(prompts(), generation=Generation(max_tokens=0))))


def test_closing_the_engine_fails_what_is_unanswered(backbone: Backbone, prompts: Prompts) -> None:
    engine = Engine(backbone, settings=Settings(max_batch=1))
    started = Event()
    long = Request(
        prompts(),
        schema=LONG,
        generation=Generation(max_tokens=700),
        on_text=lambda _: started.set(),
    )
    futures = [engine.submit(long) for _ in range(3)]
    assert started.wait(30)
    engine.close()
    engine.close()
    for future in futures:
        assert isinstance(future.exception(timeout=30), EngineError)
    with pytest.raises(EngineError, match="closed"):
        engine.submit(long).result()


def test_skills_cannot_be_loaded_from_within_the_loop(
    engine: Engine, skills: dict[str, Skill], prompts: Prompts
) -> None:
    request = Request(
        prompts(),
        generation=Generation(max_tokens=4),
        on_text=lambda _: engine.unload(skills["plain"].digest),
    )
    with pytest.raises(EngineError, match="on_text"):
        done(engine, request)
