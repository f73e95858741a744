"""Configs and tensor names of the kinds beside plain LoRA, judged before a tensor is read."""

import json
import subprocess
import sys

import pytest

from agentkit.adapters.config import parse_config
from agentkit.adapters.kinds import BottleneckConfig, HybridConfig, PrefixConfig
from agentkit.adapters.shapes import bottleneck_key, check_shapes, lora_key, magnitude_key
from agentkit.errors import AdapterError

LORA = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["up_proj"]}
BOTTLENECK = {"peft_type": "BOTTLENECK", "reduction_factor": 4}
HYBRID = {"peft_type": "HYBRID", "lora": LORA, "bottleneck": BOTTLENECK}
PREFIX = {
    "peft_type": "PREFIX_TUNING",
    "num_virtual_tokens": 3,
    "num_layers": 2,
    "num_attention_heads": 2,
    "token_dim": 8,
}
UP = "model.layers.0.mlp.up_proj"
MLP = "model.layers.0.mlp"
PAIR = {lora_key(UP, "lora_A"): (2, 8), lora_key(UP, "lora_B"): (16, 2)}
WHOLE = {
    bottleneck_key(MLP, "down.weight"): (2, 8),
    bottleneck_key(MLP, "down.bias"): (2,),
    bottleneck_key(MLP, "up.weight"): (8, 2),
    bottleneck_key(MLP, "up.bias"): (8,),
}


def parsed(values):
    return parse_config(json.dumps(values).encode(), "adapter_config.json")


def test_each_kind_says_what_it_is():
    kinds = [
        parsed(LORA).kind,
        parsed({**LORA, "use_dora": True}).kind,
        parsed({**LORA, "alora_invocation_tokens": [1]}).kind,
        parsed(BOTTLENECK).kind,
        parsed(HYBRID).kind,
        parsed(PREFIX).kind,
    ]
    assert kinds == ["lora", "dora", "activated", "bottleneck", "hybrid", "prefix"]


def test_every_key_that_peft_writes_for_prefix_tuning_is_known(tmp_path):
    peft = pytest.importorskip("peft")
    theirs = peft.PrefixTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=3,
        num_layers=2,
        num_attention_heads=2,
        token_dim=8,
        num_transformer_submodules=1,
        prefix_projection=True,
        encoder_hidden_size=5,
    )
    theirs.save_pretrained(tmp_path)
    ours = parse_config((tmp_path / "adapter_config.json").read_bytes(), "adapter_config.json")
    assert isinstance(ours, PrefixConfig)
    assert (ours.num_virtual_tokens, ours.num_layers, ours.token_dim) == (3, 2, 8)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({**HYBRID, "lora": {**LORA, "bias": "all"}}, "lora: bias"),
        ({**HYBRID, "lora": {**LORA, "r": 100_000}}, r"lora\.r"),
        ({**HYBRID, "lora": {**LORA, "evil": 1}}, "lora: unknown keys: 'evil'"),
        ({**HYBRID, "lora": {**LORA, "alora_invocation_tokens": [1]}}, "an activated one"),
        ({**HYBRID, "lora": None}, "lora: must be a JSON object"),
        ({**HYBRID, "bottleneck": {**BOTTLENECK, "scaling": "x"}}, r"bottleneck\.scaling"),
        ({**HYBRID, "bottleneck": LORA}, "bottleneck: unknown keys"),
        ({**BOTTLENECK, "auto_mapping": {"a": 1}}, "unknown keys: 'auto_mapping'"),
        ({**BOTTLENECK, "non_linearity": "torch.nn.ReLU"}, "non_linearity"),
        ({**PREFIX, "num_virtual_tokens": 10**9}, "num_virtual_tokens"),
        ({**PREFIX, "token_dim": 7}, "a multiple of num_attention_heads"),
        ({**PREFIX, "num_transformer_submodules": 2}, "num_transformer_submodules"),
        ({**PREFIX, "auto_mapping": {"a": 1}}, "a class to import"),
        ({**PREFIX, "num_layers": None}, "num_layers is missing"),
    ],
)
def test_what_is_not_served_is_refused_with_the_key_and_the_reason(values, reason):
    with pytest.raises(AdapterError, match=reason):
        parsed(values)


@pytest.mark.parametrize(
    ("config", "shapes"),
    [
        (LORA, PAIR),
        ({**LORA, "use_dora": True}, {**PAIR, magnitude_key(UP): (16,)}),
        (BOTTLENECK, WHOLE),
        (HYBRID, {**PAIR, **WHOLE}),
        (PREFIX, {"prompt_embeddings": (3, 32)}),
    ],
)
def test_whole_adapters_pass(config, shapes):
    check_shapes(shapes, parsed(config), "file")


@pytest.mark.parametrize(
    ("config", "shapes", "reason"),
    [
        (LORA, {**PAIR, magnitude_key(UP): (16,)}, "unexpected tensor"),
        ({**LORA, "use_dora": True}, {**PAIR, magnitude_key(UP): (15,)}, "needs 16 magnitudes"),
        ({**LORA, "use_dora": True}, PAIR, "found none"),
        (BOTTLENECK, {**PAIR, **WHOLE}, "unexpected tensor"),
        (BOTTLENECK, {**WHOLE, bottleneck_key(MLP, "up.bias"): (9,)}, r"expected \(8,\)"),
        (HYBRID, PAIR, "holds no bottleneck"),
        (HYBRID, WHOLE, "no tensors"),
        (PREFIX, {"prompt_embeddings": (3, 33)}, "folds a projection in"),
        (PREFIX, {"prompt_embeddings": (3, 32), "transform.0.weight": (1, 1)}, "transform"),
        (PREFIX, {}, "no tensors"),
    ],
)
def test_tensors_that_are_not_the_kinds_are_refused(config, shapes, reason):
    with pytest.raises(AdapterError, match=reason):
        check_shapes(shapes, parsed(config), "file")


def test_placement_layers_and_width_follow_the_config():
    config = BottleneckConfig(placement="houlsby", reduction_factor=3, layers_to_transform=[1, 4])
    assert config.places(1, "attention")
    assert config.places(4, "feed-forward")
    assert not config.places(0, "feed-forward")
    assert not BottleneckConfig().places(0, "attention")
    assert (config.width(10), BottleneckConfig(reduction_factor=64).width(10)) == (3, 1)


def test_configs_survive_being_written_and_read():
    hybrid = parsed(HYBRID)
    assert isinstance(hybrid, HybridConfig)
    assert parsed(hybrid.model_dump(mode="json", exclude_none=True)) == hybrid


def test_judging_a_file_takes_no_torch():
    code = "import sys, agentkit.adapters.weights; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
