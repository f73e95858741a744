"""Bottlenecks and hybrids: served as they were trained, beside every other kind."""

import json
from pathlib import Path

import pytest
import torch
from family_material import (
    FAMILIES,
    IDS,
    LAYERS,
    make_backbone,
    our_logits,
    peft_configs,
    peft_folder,
)
from peft import get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch.nn import functional

from agentkit.adapters.bottleneck import Bottlenecks
from agentkit.adapters.config import read_config
from agentkit.adapters.kinds import BottleneckConfig, HybridConfig, LoraConfig
from agentkit.adapters.saving import save_adapter
from agentkit.adapters.shapes import BOTTLENECK_PARTS
from agentkit.engine.activation import Slots
from agentkit.engine.backbone import Backbone, load_backbone
from agentkit.engine.install import Gate, prepare
from agentkit.engine.mixing import Segment
from agentkit.errors import AdapterError
from agentkit.skill.folder import load_skill

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_backbone("llama", tmp_path_factory.mktemp("kinds") / "llama")


def randomised(module: torch.nn.Module, seed: int = 5) -> None:
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.4)


def bottleneck_folder(
    backbone: Backbone, folder: Path, config: BottleneckConfig
) -> tuple[Path, torch.Tensor]:
    """A folder with random bottlenecks, and the logits of the model that they were trained on."""
    trained = Bottlenecks(backbone.model, config)
    randomised(trained)
    with trained.attached(), torch.inference_mode():
        logits = backbone.model(IDS[None]).logits[0]
    save_adapter(folder, config, trained.tensors(), backbone=backbone.fingerprint)
    return folder, logits


@pytest.mark.parametrize("family", FAMILIES)
def test_every_form_of_bottleneck_is_served_as_it_was_trained(family: str, tmp_path: Path) -> None:
    backbone = load_backbone(make_backbone(family, tmp_path / family))
    slots = Slots(backbone.modules)
    gate = Gate(backbone, slots)
    bare = our_logits(backbone, slots, None, IDS)
    for index, config in enumerate(
        (
            BottleneckConfig(placement="houlsby", reduction_factor=4, non_linearity="gelu"),
            BottleneckConfig(placement="pfeiffer", reduction_factor=2.5, scaling=0.5),
            BottleneckConfig(placement="houlsby", parallel=True, non_linearity="silu"),
            BottleneckConfig(parallel=True, non_linearity="tanh", layers_to_transform=[2]),
        )
    ):
        folder, trained = bottleneck_folder(backbone, tmp_path / f"b{index}", config)
        assert read_config(folder / "adapter_config.json") == config
        loaded = gate.install(prepare(load_skill(folder), backbone))
        assert (loaded.kind, loaded.lowest_layer) == ("bottleneck", 2 if index == 3 else 0)
        torch.testing.assert_close(
            our_logits(backbone, slots, loaded.slot, IDS), trained, atol=1e-4, rtol=0
        )
        assert (trained - bare).abs().max() > 0.05
        assert torch.equal(our_logits(backbone, slots, None, IDS), bare)
        slots.empty(loaded.slot)
    assert torch.equal(our_logits(backbone, slots, None, IDS), bare)


def test_a_sequential_bottleneck_is_the_formula_on_what_its_sub_layer_gives(
    base: Path, tmp_path: Path
) -> None:
    backbone = load_backbone(base)
    config = BottleneckConfig(placement="pfeiffer", reduction_factor=4, layers_to_transform=1)
    folder, _ = bottleneck_folder(backbone, tmp_path / "one", config)
    tensors = load_file(folder / WEIGHTS)
    key = "base_model.model.model.layers.1.mlp.bottleneck_{}"
    down, up = (tensors[key.format(f"{side}.weight")] for side in ("down", "up"))
    before, after = (tensors[key.format(f"{side}.bias")] for side in ("down", "up"))
    assert down.shape == (8, 32)
    mlp = backbone.model.model.layers[1].mlp
    states = torch.randn(1, 5, 32)
    with torch.inference_mode():
        plain = mlp(states)
        slots = Slots(backbone.modules)
        with slots.activated(slots.fill(prepare(load_skill(folder), backbone).deltas)):
            adapted = mlp(states)
    expected = plain + functional.relu(plain @ down.T + before) @ up.T + after
    torch.testing.assert_close(adapted, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("family", "dora"), [("llama", False), ("gpt2", True)])
def test_a_hybrid_is_lora_and_bottlenecks_together(family: str, dora: bool, tmp_path: Path) -> None:
    base = make_backbone(family, tmp_path / family)
    backbone = load_backbone(base)
    lora = peft_configs(family)["dora" if dora else "lora-patterns"]
    bottleneck = BottleneckConfig(placement="houlsby", reduction_factor=4)
    trained = load_backbone(base).model
    bottlenecks = Bottlenecks(trained, bottleneck)
    randomised(bottlenecks)
    peft = get_peft_model(trained, lora)
    randomised(torch.nn.ParameterList(p for n, p in peft.named_parameters() if "lora_" in n))
    with bottlenecks.attached(), torch.inference_mode():
        expected = peft(input_ids=IDS[None]).logits[0]
    ours = LoraConfig(
        peft_type="LORA",
        r=lora.r,
        lora_alpha=float(lora.lora_alpha),
        target_modules=sorted(lora.target_modules),
        layers_to_transform=lora.layers_to_transform,
        rank_pattern=lora.rank_pattern,
        alpha_pattern=lora.alpha_pattern,
        use_rslora=lora.use_rslora,
        use_dora=dora,
    )
    config = HybridConfig(lora=ours, bottleneck=bottleneck)
    tensors = {**get_peft_model_state_dict(peft), **bottlenecks.tensors()}
    folder = save_adapter(tmp_path / "both", config, tensors, backbone=backbone.fingerprint)
    slots = Slots(backbone.modules)
    loaded = Gate(backbone, slots).install(prepare(load_skill(folder), backbone))
    assert loaded.kind == "hybrid"
    torch.testing.assert_close(
        our_logits(backbone, slots, loaded.slot, IDS), expected, atol=1e-4, rtol=0
    )


def test_kinds_live_side_by_side_in_one_forward(base: Path, tmp_path: Path) -> None:
    """Each stretch of tokens is changed at each module by its own adapter alone."""
    backbone = load_backbone(base)
    configs = peft_configs("llama")
    folders = [
        peft_folder(base, tmp_path / f"p-{kind}", configs[kind]) for kind in ("lora", "dora")
    ]
    for index, parallel in enumerate((False, True)):
        config = BottleneckConfig(placement="houlsby", reduction_factor=4, parallel=parallel)
        folders.append(bottleneck_folder(backbone, tmp_path / f"b{index}", config)[0])
    slots = Slots(backbone.modules)
    filled = [None, *(slots.fill(prepare(load_skill(f), backbone).deltas) for f in folders)]
    segments = [Segment(slot, 3 * at, 3 * at + 3) for at, slot in enumerate(filled)]
    layer = backbone.model.model.layers[1]
    states = torch.randn(1, 15, 32)
    with torch.inference_mode():
        for module in (layer.mlp, layer.self_attn.q_proj):
            with slots.mixed(segments):
                mixed = module(states)
            for segment in segments:
                part = slice(segment.start, segment.stop)
                with slots.activated(segment.slot):
                    alone = module(states[:, part])
                torch.testing.assert_close(mixed[:, part], alone, atol=1e-5, rtol=0)


def test_what_training_learns_is_loaded_again(base: Path, tmp_path: Path) -> None:
    model = load_backbone(base).model
    config = BottleneckConfig(placement="houlsby", reduction_factor=4)
    bottlenecks = Bottlenecks(model, config)
    with torch.no_grad():
        bare = model(IDS[None]).logits
        with bottlenecks.attached():
            assert torch.equal(model(IDS[None]).logits, bare)  # it starts as the identity
    optimiser = torch.optim.Adam(bottlenecks.parameters(), lr=1e-2)
    losses = []
    with bottlenecks.attached():
        for _ in range(20):
            loss = model(IDS[None], labels=IDS[None]).loss
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(float(loss))
    assert losses[-1] < losses[0] / 2
    assert torch.equal(model(IDS[None]).logits, bare)
    folder = save_adapter(tmp_path / "b", config, bottlenecks.tensors(), backbone="f" * 64)
    again = Bottlenecks(model, config)
    again.load_tensors(load_file(folder / WEIGHTS))
    for ours, theirs in zip(again.parameters(), bottlenecks.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_loaded_skills_say_what_sharing_needs_to_know(base: Path, tmp_path: Path) -> None:
    backbone = load_backbone(base)
    gate = Gate(backbone, Slots(backbone.modules))
    configs = peft_configs("llama")
    loaded = {
        kind: gate.install(
            prepare(load_skill(peft_folder(base, tmp_path / kind, configs[kind])), backbone)
        )
        for kind in ("activated", "prefix", "lora-patterns", "dora")
    }
    activated, prefix = loaded["activated"], loaded["prefix"]
    assert activated.kind == "activated"
    assert activated.starts_at_invocation
    assert list(activated.invocation_tokens) == configs["activated"].alora_invocation_tokens
    assert prefix.kind == "prefix"
    assert prefix.prefix_states is not None
    assert [keys.shape for keys, _ in prefix.prefix_states] == [(1, 2, 5, 8)] * LAYERS
    assert prefix.nbytes == 2 * LAYERS * 2 * 5 * 8 * 4
    assert loaded["lora-patterns"].lowest_layer == 1
    assert loaded["dora"].kind == "dora"


# ---------------------------------------------------------------- refused


KEY = "base_model.model.model.layers.1.mlp.bottleneck_{}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({KEY.format("up.bias"): None}, "up.bias is missing"),
        ({KEY.format("up.weight"): torch.zeros(8, 32)}, r"expected \(32, 8\)"),
        ({KEY.format("down.weight"): torch.zeros(8)}, "no matrix"),
        ({KEY.format("down.weight"): torch.full((8, 32), torch.nan)}, "NaN"),
        ({KEY.format("norm.weight"): torch.zeros(32)}, "unexpected tensor"),
        (
            {KEY.format(part): None for part in BOTTLENECK_PARTS},
            "no tensors for 1 sub-layers",
        ),
    ],
)  # fmt: skip
def test_a_broken_bottleneck_is_refused(
    base: Path, tmp_path: Path, change: dict[str, torch.Tensor | None], message: str
) -> None:
    backbone = load_backbone(base)
    config = BottleneckConfig(reduction_factor=4)
    folder, _ = bottleneck_folder(backbone, tmp_path / "b", config)
    tensors = {**load_file(folder / WEIGHTS), **change}
    save_file({n: t for n, t in tensors.items() if t is not None}, folder / WEIGHTS)
    with pytest.raises(AdapterError, match=message):
        prepare(load_skill(folder), backbone)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reduction_factor": 2}, r"make \(16, 32\)"),
        ({"placement": "houlsby"}, "no tensors for 3 sub-layers"),
        ({"layers_to_transform": [0]}, "places none"),
        ({"layers_to_transform": [7]}, "places none"),
        ({"reduction_factor": 0.5}, "greater than or equal to 1"),
        ({"non_linearity": "os.system"}, "non_linearity"),
        ({"placement": "everywhere"}, "placement"),
        ({"r": 4}, "unknown keys: 'r'"),
    ],
)
def test_a_bottleneck_and_a_config_that_disagree_are_refused(
    base: Path, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    backbone = load_backbone(base)
    folder, _ = bottleneck_folder(backbone, tmp_path / "b", BottleneckConfig(reduction_factor=4))
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(AdapterError, match=message):
        prepare(load_skill(folder), backbone)


def test_a_prefix_for_other_caches_is_refused(base: Path, tmp_path: Path) -> None:
    config = peft_configs("llama")["prefix"]
    folder = peft_folder(base, tmp_path / "prefix", config)
    other = load_backbone(make_backbone("qwen3", tmp_path / "qwen3"))
    with pytest.raises(AdapterError, match=r"kv heads, head size\) = \(3, 2, 8\).*\(3, 2, 16\)"):
        prepare(load_skill(folder), other)
    tensors = load_file(folder / WEIGHTS)
    save_file({"prompt_embeddings": tensors["prompt_embeddings"][:4].clone()}, folder / WEIGHTS)
    with pytest.raises(AdapterError, match=r"shape \(5, 96\), the file holds"):
        prepare(load_skill(folder), load_backbone(base))


def test_dora_without_its_magnitudes_is_refused(base: Path, tmp_path: Path) -> None:
    folder = peft_folder(base, tmp_path / "dora", peft_configs("llama")["dora"])
    tensors = load_file(folder / WEIGHTS)
    gone = next(name for name in tensors if "magnitude" in name)
    save_file({n: t for n, t in tensors.items() if n != gone}, folder / WEIGHTS)
    with pytest.raises(AdapterError, match="DoRA needs 32 magnitudes, found none"):
        prepare(load_skill(folder), load_backbone(base))


def test_an_activated_adapter_for_another_invocation_is_refused(base: Path, tmp_path: Path) -> None:
    config = peft_configs("llama")["activated"]
    config.alora_invocation_tokens = [7, 7]
    folder = peft_folder(base, tmp_path / "activated", config)
    with pytest.raises(AdapterError, match=r"invocation tokens are \[7, 7\]"):
        prepare(load_skill(folder), load_backbone(base))
