"""A tiny real backbone and tiny real skills."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from engine_material import Prompts

from agentkit.engine.backbone import Backbone, load_backbone
from agentkit.engine.engine import Engine
from agentkit.settings import Settings
from agentkit.skill.folder import Skill, load_skill
from agentkit.testing import TinyBackbone, tiny_adapter, tiny_choice_head, tiny_label_head


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def tiny(folders: Path) -> TinyBackbone:
    return TinyBackbone.create(folders / "tiny", spare_vocabulary=7)


@pytest.fixture
def backbone(tiny: TinyBackbone) -> Backbone:
    """Of its own for each test: activation wraps its modules."""
    return load_backbone(tiny.path)


@pytest.fixture(scope="session")
def skills(folders: Path, tiny: TinyBackbone) -> dict[str, Skill]:
    """Four skills that answer differently; `chooser` and `labeller` have task heads."""
    choice = {"answer": {"kind": "choice", "choices": ["yes", "no", "unclear"]}}
    marks = {
        "answer": {
            "kind": "marks",
            "labels": [{"name": "duty"}, {"name": "right"}, {"name": "party", "unit": "token"}],
            "fields": {"marks": {"label_key": "label", "quote_key": "quote"}},
        },
        "output": {"type": "object"},
        "input": {"type": "object", "properties": {"document": {"type": "string"}}},
        "retrieval": {"document": "document"},
    }
    return {
        "plain": load_skill(tiny_adapter(folders / "plain", tiny, seed=1)),
        "upper": load_skill(tiny_adapter(folders / "upper", tiny, seed=2, layers=[2, 3], rank=8)),
        "chooser": load_skill(
            tiny_adapter(
                folders / "chooser",
                tiny,
                seed=3,
                modules=["q_proj", "v_proj"],
                head=tiny_choice_head(48, 3),
                manifest=choice,
            )
        ),
        "labeller": load_skill(
            tiny_adapter(
                folders / "labeller",
                tiny,
                seed=4,
                head=tiny_label_head(48, 2, 1),
                manifest=marks,
            )
        ),
    }


@pytest.fixture
def engine(backbone: Backbone, skills: dict[str, Skill]) -> Iterator[Engine]:
    """An engine with every skill loaded."""
    with Engine(backbone, settings=Settings(max_batch=8)) as engine:
        for skill in skills.values():
            engine.load(skill)
        yield engine


@pytest.fixture
def prompts(backbone: Backbone) -> Prompts:
    return Prompts(backbone)
