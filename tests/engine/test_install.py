"""The install gate: a skill is served whole and proven, or not at all."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from engine_material import Prompts
from safetensors.torch import load_file, save_file

from agentkit.adapters.heads import KIND
from agentkit.adapters.weights import BACKBONE_KEY
from agentkit.engine.backbone import Backbone
from agentkit.engine.engine import Engine
from agentkit.errors import AdapterError
from agentkit.skill.folder import Skill, load_skill
from agentkit.testing import TinyBackbone, tiny_adapter, tiny_choice_head
from agentkit.types import Generation, Request

WEIGHTS = "adapter_model.safetensors"


def rewrite(folder: Path, change: dict[str, torch.Tensor | None], fingerprint: str | None) -> None:
    tensors = {**load_file(folder / WEIGHTS), **change}
    metadata = {BACKBONE_KEY: fingerprint} if fingerprint else {"format": "pt"}
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, folder / WEIGHTS, metadata=metadata)


@pytest.fixture
def folder(skills: dict[str, Skill], tmp_path: Path) -> Path:
    return Path(shutil.copytree(skills["upper"].path, tmp_path / "broken"))


KEY = "base_model.model.model.layers.2.self_attn.q_proj.lora_B.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({KEY: None}, "missing"),
        ({KEY: torch.zeros(48, 3)}, "rank 3, but the config says 8"),
        ({KEY: torch.zeros(40, 8)}, r"\(out, in\) = \(40, 48\)"),
        ({KEY: torch.full((48, 8), torch.nan)}, "NaN"),
        ({KEY.replace("layers.2", "layers.9"): torch.zeros(48, 8)}, "missing"),
        ({KEY: None, KEY.replace("lora_B", "lora_A"): None}, "no tensors for 1 targeted"),
        (
            {KEY.replace("layers.2", "layers.0"): torch.zeros(48, 8),
             KEY.replace("layers.2", "layers.0").replace("_B", "_A"): torch.zeros(8, 48)},
            "does not target",
        ),
    ],
)  # fmt: skip
def test_a_broken_adapter_is_refused_and_the_others_keep_serving(
    engine: Engine,
    skills: dict[str, Skill],
    prompts: Prompts,
    tiny: TinyBackbone,
    folder: Path,
    change: dict[str, torch.Tensor | None],
    message: str,
) -> None:
    rewrite(folder, change, tiny.fingerprint)
    ask = [
        Request(prompts(), adapter=adapter, generation=Generation(max_tokens=6))
        for adapter in (None, skills["plain"].digest, skills["upper"].digest)
    ]
    before = engine.run(ask)
    loaded = set(engine.loaded)
    with pytest.raises(AdapterError, match=message):
        engine.load(load_skill(folder))
    assert set(engine.loaded) == loaded
    assert [a.text for a in engine.run(ask)] == [a.text for a in before]


def test_a_truncated_file_is_refused(engine: Engine, folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: len(content) // 2])
    with pytest.raises(AdapterError, match="truncated"):
        engine.load(load_skill(folder))


def test_an_adapter_that_changes_nothing_is_refused(
    engine: Engine, tiny: TinyBackbone, tmp_path: Path
) -> None:
    folder = tiny_adapter(tmp_path / "silent", tiny, strength=0.0)
    with pytest.raises(AdapterError, match="changes nothing"):
        engine.load(load_skill(folder))


def test_an_adapter_that_overflows_is_refused_and_taken_out_again(
    engine: Engine, tiny: TinyBackbone, tmp_path: Path, prompts: Prompts
) -> None:
    ask = Request(prompts(), generation=Generation(max_tokens=4))
    before = engine.submit(ask).result()
    folder = tiny_adapter(tmp_path / "huge", tiny, strength=1e37)
    with pytest.raises(AdapterError, match="NaN or infinite logits"):
        engine.load(load_skill(folder))
    assert engine.submit(ask).result().text == before.text


def test_an_adapter_of_another_backbone_is_refused_unless_declared(
    engine: Engine, folder: Path, tiny: TinyBackbone, tmp_path: Path
) -> None:
    rewrite(folder, {}, "f" * 64)
    with pytest.raises(AdapterError, match="trained on the backbone ffff"):
        engine.load(load_skill(folder))
    declared = tiny_adapter(
        tmp_path / "declared", tiny, seed=9, manifest={"backbones": [tiny.fingerprint]}
    )
    rewrite(declared, {}, "f" * 64)
    skill = load_skill(declared)
    engine.load(skill)
    assert engine.loaded[skill.digest].fingerprint == "declared"


def test_an_adapter_that_does_not_name_its_backbone_is_served_with_a_warning(
    engine: Engine, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rewrite(folder, {}, None)
    skill = load_skill(folder)
    engine.load(skill)
    assert engine.loaded[skill.digest].fingerprint == "unknown"
    assert "does not say which backbone" in caplog.text


def test_a_head_must_fit_the_backbone_and_the_skills_answers(
    engine: Engine, tiny: TinyBackbone, tmp_path: Path
) -> None:
    manifest = {"answer": {"kind": "choice", "choices": ["yes", "no"]}}
    for name, head, message in (
        ("wide", tiny_choice_head(64, 2), "states of 64 numbers"),
        ("many", tiny_choice_head(48, 3), r"gives \(3,\) answers"),
    ):
        folder = tiny_adapter(tmp_path / name, tiny, head=head, manifest=manifest)
        with pytest.raises(AdapterError, match=message):
            engine.load(load_skill(folder))


def test_a_head_of_unknown_kind_is_refused(
    engine: Engine, skills: dict[str, Skill], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(skills["chooser"].path, tmp_path / "chooser"))
    tensors = load_file(folder / "head.safetensors")
    save_file(tensors, folder / "head.safetensors", metadata={KIND: "os.system"})
    with pytest.raises(AdapterError, match="unknown kind of task head"):
        engine.load(load_skill(folder))


def test_it_knows_the_lowest_layer_that_an_adapter_acts_on(
    engine: Engine, skills: dict[str, Skill]
) -> None:
    layers = {name: engine.loaded[skill.digest].lowest_layer for name, skill in skills.items()}
    assert layers == {"plain": 0, "upper": 2, "chooser": 0, "labeller": 0}


def test_concurrent_loads_leave_each_skill_loaded_once(
    engine: Engine, skills: dict[str, Skill], prompts: Prompts
) -> None:
    prompt = prompts()

    def ask(name: str) -> str | None:
        request = Request(prompt, adapter=skills[name].digest, generation=Generation(max_tokens=6))
        return engine.submit(request).result().text

    names = list(skills)
    solo = {name: ask(name) for name in names}
    for name in names:
        engine.unload(skills[name].digest)
    assert not engine.loaded
    with ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(engine.load, skills[name]) for name in names * 4]:
            future.result()
    slots = [skill.slot for skill in engine.loaded.values()]
    assert len(slots) == len(set(slots)) == len(names)
    assert {name: ask(name) for name in names} == solo


def test_good_and_broken_skills_loaded_at_once_are_served_whole_or_not_at_all(
    backbone: Backbone, skills: dict[str, Skill], tiny: TinyBackbone, tmp_path: Path
) -> None:
    broken = []
    for index, change in enumerate(
        (
            {KEY: None},
            {KEY: torch.full((48, 8), torch.inf)},
            {KEY.replace("q_proj", "z_proj"): torch.zeros(48, 8)},
        )
    ):
        folder = Path(shutil.copytree(skills["upper"].path, tmp_path / f"broken-{index}"))
        rewrite(folder, change, tiny.fingerprint)
        broken.append(load_skill(folder))
    huge = load_skill(tiny_adapter(tmp_path / "huge", tiny, strength=1e37))
    bad = [*broken, huge] * 3
    ids = torch.arange(5, 25)
    at = torch.arange(len(ids))
    with torch.inference_mode():
        bare = backbone.logits(ids, positions=at, at=at)
    with Engine(backbone) as engine:
        with ThreadPoolExecutor(8) as pool:
            good = [pool.submit(engine.load, skill) for skill in [*skills.values()] * 3]
            refused = [pool.submit(engine.load, skill) for skill in bad]
            for future in good:
                future.result()
            assert all(isinstance(future.exception(), AdapterError) for future in refused)
        assert set(engine.loaded) == {skill.digest for skill in skills.values()}
        for skill in skills.values():
            engine.unload(skill.digest)
    with torch.inference_mode():
        assert torch.equal(backbone.logits(ids, positions=at, at=at), bare)
    assert not any("forward" in vars(module) for module in backbone.model.modules())
