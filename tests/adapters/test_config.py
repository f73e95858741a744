import json
import math
import sys

import pytest

from agentkit.adapters.config import parse_config, read_config
from agentkit.errors import AdapterError

PLAIN = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "up_proj"]}


def config(**changes):
    return parse_config(json.dumps({**PLAIN, **changes}).encode(), "adapter_config.json")


def refused(**changes):
    with pytest.raises(AdapterError) as caught:
        config(**changes)
    return str(caught.value)


@pytest.fixture(scope="module")
def peft_lora():
    return pytest.importorskip("peft").LoraConfig


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"layers_to_transform": [1, 2], "layers_pattern": "layers"},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {r"layers\.0\..*": 1}},
        {"use_rslora": True, "init_lora_weights": "gaussian", "lora_dropout": 0.1},
        {"target_modules": r".*\.layers\.(1|2)\..*(q_proj|up_proj)"},
        {"alora_invocation_tokens": [5, 6]},
    ],
)
def test_every_key_that_peft_writes_is_known_and_targets_as_peft_does(
    tmp_path, peft_lora, arguments
):
    from peft.tuners.tuners_utils import check_target_module_exists

    theirs = peft_lora(
        **{"r": 8, "target_modules": ["q_proj", "up_proj"], "task_type": "CAUSAL_LM", **arguments}
    )
    theirs.save_pretrained(tmp_path)
    ours = read_config(tmp_path / "adapter_config.json")
    for layer in range(12):
        for name in ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj"):
            module = f"model.layers.{layer}.{name}"
            assert ours.targets(module) == bool(check_target_module_exists(theirs, module))


def test_an_own_key_would_make_peft_complain_so_none_is_written():
    assert "agentkit" in refused(agentkit={"backbone": "x"})


# ---------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"auto_mapping": {"base_model_class": "X", "parent_library": "os"}}, "a class to import"),
        ({"megatron_core": "os.path"}, "a module to import"),
        ({"megatron_config": {"a": 1}}, "Megatron"),
        ({"custom_module": "evil.Layer", "zzz": 1}, "unknown keys: 'custom_module', 'zzz'"),
        ({"corda_config": {"cache_file": "x"}}, "corda_config"),
        ({"eva_config": {"rho": 2}}, "eva_config"),
        ({"use_dora": True, "alora_invocation_tokens": [5]}, "cannot be weight-decomposed"),
        ({"alora_invocation_tokens": []}, "at least one token"),
        ({"lora_bias": True}, "lora_bias"),
        ({"bias": "all"}, "bias='none'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"target_parameters": ["experts"]}, "target_parameters"),
        ({"trainable_token_indices": [1]}, "trained embeddings"),
        ({"layer_replication": [[0, 4], [2, 5]]}, "layer_replication"),
        ({"init_lora_weights": "pissa"}, "changes the backbone's weights"),
        ({"task_type": "SEQ_CLS"}, "task_type"),
        ({"peft_type": "PROMPT_TUNING"}, "supported kinds: LORA, BOTTLENECK, HYBRID"),
        ({"peft_type": "PREFIX_TUNING"}, "unknown keys: 'lora_alpha'"),
        ({"peft_type": ["LORA"]}, "supported kinds: LORA"),
        ({"peft_type": None}, "supported kinds: LORA"),
        ({"r": 0}, "r: Input"),
        ({"r": 100_000}, "less than or equal to 1024"),
        ({"r": True}, "r: Input"),
        ({"r": "8"}, "r: Input"),
        ({"r": None}, "r is missing"),
        ({"rank_pattern": {"q_proj": 100_000}}, "rank_pattern"),
        ({"target_modules": None}, "target_modules is missing"),
        ({"target_modules": []}, "at least one module"),
        ({"target_modules": "("}, "not a regular expression"),
        ({"target_modules": "q)|(.*"}, "not a regular expression"),
        ({"target_modules": "(?=x)x"}, "look-around"),
        ({"target_modules": r"(a)\1"}, "back-references"),
        ({"target_modules": "(a{1000}){1000}"}, "too large"),
        ({"rank_pattern": {"[": 4}}, "not a regular expression"),
        ({"layers_pattern": ".*", "layers_to_transform": [1]}, "a plain name"),
        ({"target_modules": "x", "layers_to_transform": [1]}, "needs target_modules to be a list"),
    ],
)
def test_what_is_not_plain_lora_is_refused_with_the_key_and_the_reason(changes, reason):
    assert reason in refused(**changes)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"[" * 100_000,
        b'{"r": 1, "r": 2}',
        b'{"peft_type": "LORA", "r": 8, "lora_alpha": NaN, "target_modules": ["a"]}',
        b'{"peft_type": "LORA", "r": 8, "lora_alpha": 1e999, "target_modules": ["a"]}',
        b"\xff\xfe",
        b" " * 4_000_001,
    ],
)
def test_a_file_that_is_no_honest_json_object_is_refused(content):
    with pytest.raises(AdapterError):
        parse_config(content, "adapter_config.json")


def test_nothing_that_a_config_names_is_imported():
    before = set(sys.modules)
    refused(auto_mapping={"base_model_class": "Antigravity", "parent_library": "antigravity"})
    refused(megatron_core="antigravity")
    assert "antigravity" not in set(sys.modules) - before


@pytest.mark.timeout(60)
def test_a_hostile_pattern_takes_linear_time():
    hostile = config(target_modules="(a+)+b|(a|a)*c|.*.*.*.*.*d")
    assert not hostile.targets("a" * 5000)  # a backtracking matcher would not end


# ---------------------------------------------------------------- rank, scaling, targets


def test_rank_and_scaling_follow_the_patterns():
    plain = config(rank_pattern={"q_proj": 2, r"layers\.0\.mlp\.up_proj": 4}, alpha_pattern={})
    assert plain.rank("model.layers.3.self_attn.q_proj") == 2
    assert plain.rank("model.layers.0.mlp.up_proj") == 4
    assert plain.rank("model.layers.10.mlp.up_proj") == 8
    assert plain.rank("model.layers.3.self_attn.xq_proj") == 8
    assert plain.scaling("model.layers.3.self_attn.q_proj") == 8.0
    stabilised = config(use_rslora=True, alpha_pattern={"up_proj": 32})
    assert stabilised.scaling("model.layers.3.mlp.up_proj") == 32 / math.sqrt(8)


def test_all_linear_leaves_the_output_layer_out():
    everything = config(target_modules="all-linear", exclude_modules=["v_proj"])
    assert everything.targets("model.layers.0.self_attn.q_proj")
    assert not everything.targets("model.layers.0.self_attn.v_proj")
    assert not everything.targets("lm_head")


def test_neutral_values_are_accepted():
    config(modules_to_save=[], loftq_config={}, use_bdlora=None, megatron_core="megatron.core")
    config(layers_pattern=None, rank_pattern=None, exclude_modules=None, lora_dropout=0.3)
