"""Where a training computes: refused where it cannot, and on a GPU the same as on a processor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from agentkit.errors import InputError
from agentkit.training.train import train_skill


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("gpu9", "no such device"),
        ("meta", "cannot train on 'meta' here"),
        pytest.param(
            "cuda",
            "cannot train on 'cuda' here.*device=cpu",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_a_device_that_is_not_here_is_refused(
    make_toy: Callable[..., Any], tmp_path: Path, name: str, what: str
) -> None:
    toy = make_toy("likelihood", tmp_path, steps=2)
    settings = toy.settings.model_copy(update={"device": name})
    with pytest.raises(InputError, match=what):
        train_skill(toy.folder, settings=settings, data_dir=toy.folder, console=Console(quiet=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", ["choice", "marks", "generate", "probed"])
def test_a_gpu_learns_what_a_processor_learns(
    make_toy: Callable[..., Any], tmp_path: Path, kind: str
) -> None:
    losses = {}
    for name in ("cpu", "cuda"):
        toy = make_toy(kind, tmp_path / name, steps=40)
        settings = toy.settings.model_copy(update={"device": name})
        trained = train_skill(
            toy.folder, settings=settings, data_dir=toy.folder, console=Console(quiet=True)
        )
        assert trained.metrics["device"] == name
        assert ("peak_gpu_memory_bytes" in trained.metrics) == (name == "cuda")
        losses[name] = [entry["loss"] for entry in trained.metrics["loss"]]
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=0.05, abs=0.02)
