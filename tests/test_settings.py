"""Settings: from arguments, then the environment, then defaults; frozen; unknown keys fail."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from agentkit.settings import Settings


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"AGENTKIT_{name.upper()}", raising=False)


def test_the_defaults_are_the_embedded_models_on_the_processor() -> None:
    settings = Settings()
    assert settings.backbone == "smollm2-135m-instruct"
    assert settings.encoder == "all-minilm-l6-v2"
    assert settings.device == "cpu"
    assert settings.home.is_absolute()


def test_the_environment_is_read_and_an_argument_wins(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AGENTKIT_HOME", str(tmp_path))
    monkeypatch.setenv("AGENTKIT_DTYPE", "float32")
    monkeypatch.setenv("AGENTKIT_MAX_BATCH", "3")
    settings = Settings(max_batch=5)
    assert (settings.home, settings.dtype, settings.max_batch) == (tmp_path, "float32", 5)


def test_everything_that_is_kept_lies_under_home(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    places = [
        settings.models_dir,
        settings.store_dir,
        settings.documents_dir,
        settings.indexes_dir,
        settings.runs_db,
    ]
    assert all(place.parent == tmp_path for place in places)
    assert len(set(places)) == len(places)


@pytest.mark.parametrize(
    "values",
    [
        {"colour": "red"},
        {"dtype": "int3"},
        {"max_batch": "many"},
        {"max_batch": 0},
        {"threads": 0},
        {"home": 3},
        {"adapter_memory_bytes": -1},
        {"prefix_cache_bytes": -1},
        {"document_window": 0},
        {"excerpt_budget": -1},
        {"document_max_bytes": 0},
        {"document_seconds": float("nan")},
    ],
)
def test_what_is_unknown_or_misshapen_fails(values: dict) -> None:
    with pytest.raises(ValidationError):
        Settings(**values)


def test_an_empty_variable_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTKIT_HOME", "")
    assert Settings().home.is_absolute()


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().device = "cuda"
