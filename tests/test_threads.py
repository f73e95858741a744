"""What computes leaves no native threads behind, for each would slow down the others."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch

from agentkit.engine.backbone import load_backbone
from agentkit.engine.engine import Engine
from agentkit.prompt import build_prompt
from agentkit.testing import TinyBackbone
from agentkit.threads import in_own_thread
from agentkit.types import Generation, Request

TASKS = Path("/proc/self/task")
pytestmark = pytest.mark.skipif(not TASKS.is_dir(), reason="native threads are counted by /proc")


def native_threads() -> int:
    return len(os.listdir(TASKS))  # noqa: PTH208


def soon(count: int) -> bool:
    """Whether there are at most so many native threads within a few seconds."""
    end = time.monotonic() + 10
    while native_threads() > count:
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def large_product() -> torch.Tensor:
    return torch.ones(700, 700) @ torch.ones(700, 700)


def test_what_it_gives_and_raises_comes_through() -> None:
    assert in_own_thread(lambda: 3) == 3
    with pytest.raises(KeyError, match="lost"):
        in_own_thread(lambda: {}["lost"])


def test_its_native_threads_end_with_it() -> None:
    before = native_threads()
    assert float(in_own_thread(large_product)[0, 0]) == 700
    assert soon(before)


def test_an_idle_engine_has_no_thread_and_goes_on_when_asked(tiny_backbone: TinyBackbone) -> None:
    before = native_threads()
    backbone = in_own_thread(lambda: load_backbone(tiny_backbone.path))
    with Engine(backbone) as engine:
        prompt = engine.encode(build_prompt(engine.frame, instructions="Say.", question="What?"))
        request = Request(prompt, generation=Generation(max_tokens=4))
        first = engine.run([request])
        assert soon(before)
        assert engine.run([request]) == first
        assert soon(before)
        engine.run([request])
    assert soon(before)
