"""A tiny backbone, tiny skills about birds and weather, and the command as a process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from agentkit import models
from agentkit.cli.app import run
from agentkit.errors import ModelError
from agentkit.settings import Settings
from agentkit.testing import TinyBackbone, tiny_adapter, tiny_choice_head, tiny_label_head

AGENTKIT = Path(sys.executable).with_name("agentkit")
TEXT = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
BIRDS = ["which bird is singing here", "name the bird in the garden", "what bird has a red breast"]
WEATHER = ["will it rain tomorrow", "tell me the weather", "is it going to be sunny at noon"]


@pytest.fixture(scope="session")
def skills(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: TinyBackbone) -> Path:
    """A folder of three skills, one for each way of answering."""
    folder = tmp_path_factory.mktemp("tiny") / "skills"
    bird = {
        "input": TEXT,
        "output": {
            "type": "object",
            "properties": {"bird": {"enum": ["wren", "heron"]}},
            "required": ["bird"],
        },
        "prompt": {"question": "{{ text }}"},
        "generation": {"max_tokens": 32},
        "utterances": BIRDS,
    }
    weather = {
        "input": TEXT,
        "output": {"type": "object", "required": ["weather", "score"]},
        "answer": {"kind": "choice", "choices": ["rain", "sun"], "field": "weather"},
        "prompt": {"question": "{{ text }}"},
        "utterances": WEATHER,
    }
    marks = {
        "input": {
            "type": "object",
            "properties": {"document": {"type": "string"}},
            "required": ["document"],
        },
        "output": {"type": "object", "required": ["clauses"]},
        "answer": {
            "kind": "marks",
            "labels": [{"name": "place", "threshold": 1.0}, {"name": "time", "threshold": 0.0}],
            "fields": {"clauses": {"label_key": "category", "quote_key": "quote"}},
        },
        "retrieval": {"document": "document", "mode": "windows"},
        "utterances": ["mark the places and times", "underline where and when it happened"],
    }
    tiny_adapter(folder / "bird-namer", tiny_backbone, seed=1, manifest=bird)
    tiny_adapter(
        folder / "weather-teller",
        tiny_backbone,
        seed=2,
        head=tiny_choice_head(48, 2),
        manifest=weather,
    )
    tiny_adapter(
        folder / "place-marker",
        tiny_backbone,
        seed=3,
        head=tiny_label_head(48, 2, 0),
        manifest=marks,
    )
    return folder


@pytest.fixture(scope="session")
def encoder() -> Path:
    """The embedded encoder's folder; tests that use it are marked `weights`."""
    try:
        return models.path("all-minilm-l6-v2", Settings())
    except ModelError as error:
        pytest.skip(str(error))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def sets(home: Path, tiny_backbone: TinyBackbone, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Options that give a command the tiny backbone and a home of the test's own."""
    monkeypatch.chdir(tmp_path)
    values = {"home": home, "backbone": tiny_backbone.path, "dtype": "float32", "threads": 1}
    return [part for key, value in values.items() for part in ("--set", f"{key}={value}")]


@pytest.fixture
def options(sets: list[str], skills: Path) -> list[str]:
    """The same, and the tiny skills."""
    return [*sets, "--skills", str(skills)]


@pytest.fixture
def full(options: list[str], encoder: Path) -> list[str]:
    """The same, and the real encoder: what it takes to route and to run."""
    return [*options, "--set", f"encoder={encoder}"]


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str]) -> Callable[[Sequence[object]], tuple[int, str, str]]:
    """A command line in this process: its exit code, stdout and stderr."""

    def call(arguments: Sequence[object]) -> tuple[int, str, str]:
        capfd.readouterr()
        code = run([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return code, out, err

    return call


def spawn(arguments: Sequence[object], cwd: Path) -> subprocess.Popen[str]:
    """A command line as a process of its own, as a user starts it."""
    return subprocess.Popen(
        [str(AGENTKIT), *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Its exit code, stdout and stderr, once it has ended."""
    with process:
        out, err = process.communicate(timeout=120)
    assert "Traceback" not in err
    return process.returncode, out, err
