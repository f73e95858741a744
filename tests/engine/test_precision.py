"""Reading in bfloat16, writing in int8: what is near to float32, and what is the very same."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from engine_material import Prompts, done
from family_material import make_backbone, peft_configs, peft_folder
from hypothesis import given
from hypothesis import strategies as st

from agentkit import models
from agentkit.adapters.bottleneck import Bottlenecks
from agentkit.adapters.kinds import BottleneckConfig
from agentkit.adapters.saving import save_adapter
from agentkit.engine.activation import Slots
from agentkit.engine.backbone import Backbone, load_backbone
from agentkit.engine.engine import Engine
from agentkit.engine.forward import hidden_states, logits
from agentkit.engine.install import PreparedSkill, prepare
from agentkit.engine.packed import PackedRows
from agentkit.engine.precision import FEW, computing_type, has_phases, quantized
from agentkit.engine.prefix import PrefixStates
from agentkit.settings import Settings
from agentkit.skill.folder import Skill, load_skill
from agentkit.testing import TinyBackbone
from agentkit.types import Generation, Request

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
needs_phases = pytest.mark.skipif(
    not has_phases("auto", "cpu"), reason="this processor has no bfloat16 instructions"
)
LONG = [int(x) for x in torch.randint(5, 300, (60,), generator=torch.Generator().manual_seed(0))]
BOUND = 0.06
"""Of the spread of a token's logits: what int8 and bfloat16 may move them by in a small model with
large weights."""


@pytest.fixture
def auto(tiny: TinyBackbone) -> Backbone:
    return load_backbone(tiny.path, dtype="auto")


def written(
    backbone: Backbone, slots: Slots, rows: list[int | None], skills: dict[int, PreparedSkill]
) -> torch.Tensor:
    """Logits `(rows, vocabulary)` of one token written in each row, after reading the same text."""
    trees = []
    for slot in rows:
        pairs = skills[slot].prefix_states if slot in skills else None
        root = None
        if pairs:
            root = PrefixStates(pairs[0][0].shape[-2], torch.zeros(0, backbone.hidden), pairs)
        tree = PackedRows(root)
        tree.append(tree.fork(), (slot, LONG))
        hidden_states(backbone, slots, tree)
        trees.append(tree)
    at = [[tree.append(0, (slot, [7]))] for tree, slot in zip(trees, rows, strict=True)]
    found = torch.cat(logits(backbone, slots, trees, at))
    return found[:, : len(backbone.tokenizer)]


def error(found: torch.Tensor, exact: torch.Tensor) -> float:
    """The largest difference, in units of the spread of the exact logits."""
    return float(((found - exact).abs().amax(1) / (exact.amax(1) - exact.amin(1))).max())


@given(
    st.integers(1, 6),
    st.integers(1, 40),
    st.integers(0, 2**32 - 1),
    st.floats(1e-6, 1e6),
    st.data(),
)
def test_no_weight_is_further_off_than_half_a_scale(
    outputs: int, inputs: int, seed: int, size: float, data: st.DataObject
) -> None:
    weight = size * torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(seed))
    weight[data.draw(st.integers(0, outputs - 1))] = 0
    steps, scale = quantized(weight)
    assert steps.dtype == torch.int8
    assert steps.abs().max() <= 127
    back = steps.float() * scale.float()[:, None]
    assert bool(((back - weight).abs() <= 0.5001 * scale.float()[:, None]).all())


def test_an_explicit_type_is_what_it_says_and_keeps_no_copies(tiny: TinyBackbone) -> None:
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        backbone = load_backbone(tiny.path, dtype=name)
        assert backbone.dtype == backbone.adapter_dtype == dtype
        assert backbone.phased is None
        assert list(backbone.weight_bytes) == [name]
        assert all("forward" not in vars(spec.module) for spec in backbone.modules.values())


def test_a_gpu_is_never_given_int8() -> None:
    assert not has_phases("auto", "cuda")
    assert computing_type("float32", "cuda") == torch.float32


@needs_phases
def test_auto_keeps_the_frozen_weights_and_says_what_its_copies_take(
    tiny: TinyBackbone, auto: Backbone
) -> None:
    half = load_backbone(tiny.path, dtype="bfloat16")
    assert auto.fingerprint == half.fingerprint == tiny.fingerprint
    for name, parameter in half.model.state_dict().items():
        assert torch.equal(auto.model.state_dict()[name], parameter)
    weights = sum(
        spec.module.weight.numel() for spec in auto.modules.values() if spec.part == "linear"
    )
    assert auto.weight_bytes["bfloat16"] == half.weight_bytes["bfloat16"]
    assert weights < auto.weight_bytes["int8"] < 1.1 * weights


@needs_phases
def test_what_is_read_never_meets_int8(
    tiny: TinyBackbone, auto: Backbone, skills: dict[str, Skill]
) -> None:
    """Prefixes and the states that task heads read are those of bfloat16, bit for bit."""
    found = []
    for backbone in (auto, load_backbone(tiny.path, dtype="bfloat16")):
        slots = Slots(backbone.modules)
        slot = slots.fill(prepare(skills["plain"], backbone).deltas)
        with torch.inference_mode():
            tree = PackedRows(None)
            tree.append(tree.fork(), (slot, LONG))
            found.append(hidden_states(backbone, slots, tree))
            tree.append(tree.fork(), (None, LONG[:3]))
            found.append(logits(backbone, slots, [tree], [[2]])[0])
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[1], found[3])


@needs_phases
def test_more_rows_than_a_few_are_written_in_bfloat16(tiny: TinyBackbone, auto: Backbone) -> None:
    half = load_backbone(tiny.path, dtype="bfloat16")
    with torch.inference_mode():
        for rows, same in ((1, False), (FEW, False), (FEW + 1, True)):
            found = [written(b, Slots(b.modules), [None] * rows, {}) for b in (auto, half)]
            assert torch.equal(*found) == same


@needs_phases
def test_a_bare_step_is_bit_identical_after_skills_came_and_went(
    auto: Backbone, skills: dict[str, Skill]
) -> None:
    slots = Slots(auto.modules)
    with torch.inference_mode():
        bare = written(auto, slots, [None], {})
        filled = [slots.fill(prepare(skill, auto).deltas) for skill in skills.values()]
        assert not torch.equal(written(auto, slots, [filled[0]], {}), bare)
        assert torch.equal(written(auto, slots, [None], {}), bare)
        for slot in filled:
            slots.empty(slot)
        assert torch.equal(written(auto, slots, [None], {}), bare)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_backbone("llama", tmp_path_factory.mktemp("int8") / "llama")


@pytest.fixture(scope="module")
def kinds(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("int8-skills")
    configs = peft_configs("llama")
    names = ("lora", "dora", "prefix")
    found = {name: peft_folder(base, root / f"p-{name}", configs[name]) for name in names}
    config = BottleneckConfig(placement="houlsby", reduction_factor=4)
    backbone = load_backbone(base)
    bottlenecks = Bottlenecks(backbone.model, config)
    torch.manual_seed(8)
    with torch.no_grad():
        for parameter in bottlenecks.parameters():
            parameter.normal_(std=0.3)
    found["bottleneck"] = save_adapter(
        root / "bottleneck", config, bottlenecks.tensors(), backbone=backbone.fingerprint
    )
    return found


@needs_phases
def test_every_kind_is_near_its_float32_alone_and_in_a_mixed_step(
    base: Path, kinds: dict[str, Path]
) -> None:
    assert len(kinds) <= FEW
    found = []
    for dtype in ("float32", "auto"):
        backbone = load_backbone(base, dtype=dtype)
        slots = Slots(backbone.modules)
        skills = {}
        for folder in kinds.values():
            skill = prepare(load_skill(folder), backbone)
            skills[slots.fill(skill.deltas)] = skill
        with torch.inference_mode():
            together = written(backbone, slots, list(skills), skills)
            alone = torch.cat([written(backbone, slots, [slot], skills) for slot in skills])
            wide = written(backbone, slots, [*skills, None], skills)[:-1]
        found.append((together, alone, wide))
    (exact, exact_alone, _), (together, alone, wide) = found
    torch.testing.assert_close(exact, exact_alone, atol=1e-4, rtol=0)
    for one in (together, alone, wide):
        assert error(one, exact) < BOUND
    assert error(together, alone) < BOUND / 4  # the same int8 products, bfloat16 sums


@pytest.fixture
def auto_engine(auto: Backbone, skills: dict[str, Skill]) -> Iterator[Engine]:
    with Engine(auto, settings=Settings(max_batch=8)) as engine:
        for skill in skills.values():
            engine.load(skill)
        yield engine


@needs_phases
def test_requests_of_all_sorts_are_answered_together(
    auto_engine: Engine, skills: dict[str, Skill], prompts: Prompts
) -> None:
    """Rows come and go between int8 and bfloat16 steps; readings and scores stay the same."""
    prompt = prompts()
    reading = Request(prompt, adapter=skills["labeller"].digest, read=True)
    scored = Request(prompt, adapter=skills["plain"].digest, choices=("yes", "no way"))
    alone = done(auto_engine, reading), done(auto_engine, scored)
    words = [
        Request(prompt, adapter=skills[name].digest, generation=Generation(max_tokens=12 + n))
        for n, name in enumerate(("plain", "upper", "chooser", "plain", "upper", "chooser"))
    ]
    *texts, read, score = auto_engine.run([*words, reading, scored])
    assert all(0 < text.usage.completion_tokens <= 17 for text in texts)
    assert (read.reading.span_labels == alone[0].reading.span_labels).all()
    assert score.choices == pytest.approx(alone[1].choices, abs=0.02)


@needs_phases
@pytest.mark.weights
def test_the_real_backbone_writes_near_its_float32() -> None:
    folder = models.resolve("smollm2-135m-instruct", Settings(), "backbone")
    found = []
    for dtype in ("float32", "auto"):
        backbone = load_backbone(folder, dtype=dtype)
        with torch.inference_mode():
            found.append(written(backbone, Slots(backbone.modules), [None] * 2, {}))
    exact, auto = found
    assert error(auto, exact) < 0.05
    assert torch.equal(auto.argmax(1), exact.argmax(1))
