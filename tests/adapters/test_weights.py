import contextlib
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file as save_numpy
from safetensors.torch import save_file

from agentkit.adapters.config import parse_config
from agentkit.adapters.weights import (
    BACKBONE_KEY,
    check_adapter,
    check_adapter_header,
    check_against_modules,
    fingerprint_status,
    load_adapter,
    lora_pairs,
    read_tensors,
)
from agentkit.errors import AdapterError, AgentkitError
from agentkit.skill.folder import load_skill

MODULES = {
    f"model.layers.{layer}.{name}": shape
    for layer in range(2)
    for name, shape in (("self_attn.q_proj", (8, 8)), ("mlp.up_proj", (16, 8)))
}
KEY = "base_model.model.{}.{}.weight"


def config(**changes):
    values = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["up_proj"]}
    return parse_config(json.dumps({**values, **changes}).encode(), "adapter_config.json")


def tensors(modules=("model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj"), rank=2):
    torch.manual_seed(0)
    found = {}
    for module in modules:
        out, into = MODULES[module]
        found[KEY.format(module, "lora_A")] = torch.randn(rank, into)
        found[KEY.format(module, "lora_B")] = torch.randn(out, rank)
    return found


def raw(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


@pytest.fixture
def path(tmp_path):
    return tmp_path / "adapter_model.safetensors"


# ---------------------------------------------------------------- reading


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_tensors_come_back_as_they_were_saved(path, dtype):
    saved = {name: tensor.to(dtype) for name, tensor in tensors().items()}
    save_file(saved, path, metadata={"format": "pt", BACKBONE_KEY: "abc"})
    loaded = read_tensors(path)
    assert loaded.backbone == "abc"
    assert loaded.tensors.keys() == saved.keys()
    assert all(torch.equal(loaded.tensors[name], saved[name]) for name in saved)
    assert all(loaded.tensors[name].dtype == dtype for name in saved)


def test_scalars_and_empty_tensors_are_read(path):
    save_file({"a": torch.tensor(3.0), "b": torch.zeros(0, 4)}, path)
    loaded = read_tensors(path).tensors
    assert loaded["a"].shape == ()
    assert loaded["b"].shape == (0, 4)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(keep=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_anywhere_is_refused(path, keep):
    save_file(tensors(), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(AdapterError):
        read_tensors(path)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_header_is_refused_or_harmless(path, data):
    save_file(tensors(), path)
    content = bytearray(path.read_bytes())
    header = int.from_bytes(content[:8], "little")
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, 7 + header))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with contextlib.suppress(AgentkitError):
        read_tensors(path)


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no safetensors header"),
        ((10**10).to_bytes(8, "little") + b"{}", "10,000,000,000 bytes"),
        ((2**64 - 1).to_bytes(8, "little") + b"{}", "the limit is"),
        ((100).to_bytes(8, "little") + b"{}", "ends within its header"),
        (raw(b"[" * 200_000), "not valid JSON"),
        (raw(b"[]"), "JSON object"),
        (raw(b'{"a": 1, "a": 2}'), "occurs twice"),
        (raw({"a": 1}), "malformed header entry"),
        (raw({"__metadata__": {"a": 1}}), "map strings to strings"),
        (raw({"a": F32}), "truncated"),
        (raw({"a": F32}, b"\0" * 9), "bytes after the last tensor"),
        (raw({"a": {**F32, "data_offsets": [4, 12]}}, b"\0" * 12), "a gap or overlap"),
        (raw({"a": F32, "b": F32}, b"\0" * 8), "a gap or overlap"),
        (raw({"a": {**F32, "shape": [3]}}, b"\0" * 8), "disagree"),
        (raw({"a": {**F32, "shape": [2**62, 4]}}, b"\0" * 8), "disagree"),
        (raw({"a": {**F32, "shape": [-1, -2]}}, b"\0" * 8), "malformed shape"),
        (raw({"a": {**F32, "shape": [True, 2]}}, b"\0" * 8), "malformed shape"),
        (raw({"a": {**F32, "shape": [1] * 9}}, b"\0" * 8), "malformed shape"),
        (raw({"a": {**F32, "data_offsets": [8, 0]}}, b"\0" * 8), "disagree"),
        (raw({"a": {**F32, "data_offsets": [0]}}, b"\0" * 8), "disagree"),
        (raw({"a": {**F32, "dtype": "I64"}}, b"\0" * 8), "type 'I64' is not read"),
        (raw({"a": {**F32, "dtype": ["F32"]}}, b"\0" * 8), "is not read"),
    ],
)
def test_a_file_that_is_not_what_its_header_says_is_refused(path, content, reason):
    path.write_bytes(content)
    with pytest.raises(AdapterError, match=reason):
        read_tensors(path)


LIMITED = """
import resource, sys
from pathlib import Path
from agentkit.adapters.tensor_file import read_header
from agentkit.errors import AdapterError
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
try:
    read_header(Path(sys.argv[1]), max_bytes=1 << 40)
except AdapterError as error:
    print(error)
"""


def test_a_10_gb_header_is_refused_before_memory_is_taken(path):
    with path.open("wb") as stream:
        stream.write((10 * 10**9).to_bytes(8, "little"))
        stream.truncate(10 * 10**9 + 8)  # sparse: takes no room on the disk
    run = subprocess.run(
        [sys.executable, "-c", LIMITED, str(path)], capture_output=True, text=True, check=True
    )
    assert "a header of 10,000,000,000 bytes" in run.stdout
    with pytest.raises(AdapterError, match="the limit is"):
        read_tensors(path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_is_not_finite_is_refused(path, dtype, bad):
    saved = {name: tensor.to(dtype) for name, tensor in tensors().items()}
    name = next(iter(saved))
    saved[name][1, 3] = bad
    save_file(saved, path)
    with pytest.raises(AdapterError, match=f"{name}: holds a NaN or an infinity"):
        read_tensors(path)


def test_the_largest_finite_numbers_are_no_infinities(path):
    save_file({str(d): torch.tensor([torch.finfo(d).max, torch.finfo(d).min], dtype=d)
               for d in (torch.float32, torch.float16, torch.bfloat16)}, path)  # fmt: skip
    assert len(read_tensors(path).tensors) == 3


# ---------------------------------------------------------------- pairs against the config


def test_pairs_carry_their_scaling_and_shape(path):
    save_file(tensors(), path)
    pairs = lora_pairs(read_tensors(path), config())
    pair = pairs["model.layers.1.mlp.up_proj"]
    assert (pair.rank, pair.shape, pair.scaling) == (2, (16, 8), 2.0)
    check_against_modules(pairs, MODULES, config())


def test_a_rank_other_than_the_configs_names_the_tensor(path):
    save_file(tensors(rank=4), path)
    reason = r"layers\.0\.mlp\.up_proj\.lora_A\.weight: rank 4, but the config says 2"
    with pytest.raises(AdapterError, match=reason):
        lora_pairs(read_tensors(path), config())
    check_adapter_header(path, config(rank_pattern={"up_proj": 4}))


def test_a_rank_of_100_000_is_refused_from_the_header_alone(path):
    a, b = (KEY.format("model.layers.0.mlp.up_proj", side) for side in ("lora_A", "lora_B"))
    half = 100_000 * 8 * 4
    header = {
        a: {"dtype": "F32", "shape": [100_000, 8], "data_offsets": [0, half]},
        b: {"dtype": "F32", "shape": [8, 100_000], "data_offsets": [half, 2 * half]},
    }
    content = raw(header)
    with path.open("wb") as stream:
        stream.write(content)
        stream.truncate(len(content) + 2 * half)
    with pytest.raises(AdapterError, match=r"rank 100000.*the limit is 1024"):
        check_adapter_header(path, config())


def test_a_rank_beyond_the_layer_itself_is_refused(path):
    save_file(tensors(rank=500), path)
    with pytest.raises(AdapterError, match="exceeds both sides"):
        check_adapter_header(path, config(r=500))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t.clear(), "holds no tensors"),
        (lambda t: t.pop(KEY.format("model.layers.0.mlp.up_proj", "lora_B")), "is missing"),
        (lambda t: t.update({"x": torch.zeros(1)}), "unexpected tensor 'x'"),
        (lambda t: t.update({"model.lora_A.weight": torch.zeros(2, 2)}), "unexpected tensor"),
        (
            lambda t: t.update({KEY.format("model.embed", "lora_embedding_A"): torch.zeros(2, 2)}),
            "unexpected tensor",
        ),
        (
            lambda t: t.update({KEY.format("model.conv", "lora_A"): torch.zeros(2, 2, 1)}),
            "two-dimensional",
        ),
        (
            lambda t: t.update({KEY.format("model.none", "lora_A"): torch.zeros(2, 0)}),
            "two-dimensional",
        ),
    ],
)
def test_tensors_that_are_no_whole_pairs_are_refused(path, change, reason):
    found = tensors()
    change(found)
    save_file(found, path)
    with pytest.raises(AdapterError, match=reason):
        lora_pairs(read_tensors(path), config())


# ---------------------------------------------------------------- pairs against the backbone


def shapes(*modules):
    return {module: MODULES.get(module, (4, 4)) for module in modules}


UP = ("model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj")


@pytest.mark.parametrize(
    ("pairs", "changes", "reason"),
    [
        ({}, {}, "holds no tensors"),
        (shapes(*UP, "model.layers.2.mlp.up_proj"), {}, r"no linear layer 'model\.layers\.2\."),
        (shapes("encoder.up_proj"), {}, "no linear layer 'encoder.up_proj'.*another backbone"),
        (shapes(UP[0]), {}, r"no tensors for 1 targeted modules.*layers\.1\.mlp\.up_proj"),
        (shapes(*UP, "model.layers.0.self_attn.q_proj"), {}, "does not target"),
        (shapes(*UP), {"layers_to_transform": [0]}, "does not target"),
        ({UP[0]: (16, 8), UP[1]: (16, 9)}, {}, r"\(16, 9\), the backbone has \(16, 8\)"),
        ({UP[0]: (8, 16), UP[1]: (16, 8)}, {}, r"\(8, 16\), the backbone has \(16, 8\)"),
    ],
)
def test_an_adapter_that_does_not_fit_the_backbone_is_refused(pairs, changes, reason):
    with pytest.raises(AdapterError, match=reason):
        check_against_modules(pairs, MODULES, config(**changes))


def test_a_layer_sparse_adapter_needs_only_its_own_layers():
    check_against_modules(shapes(UP[1]), MODULES, config(layers_to_transform=[1]))


def test_an_adapter_that_peft_saves_fits_and_computes_the_same(tmp_path):
    peft = pytest.importorskip("peft")

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.up_proj = torch.nn.Linear(8, 16, bias=False)
            self.down_proj = torch.nn.Linear(16, 8, bias=False)

        def forward(self, x):
            return self.down_proj(self.up_proj(x))

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.ModuleList(Block() for _ in range(2))

        def forward(self, x):
            for block in self.layers:
                x = block(x)
            return x

    torch.manual_seed(0)
    model = Model()
    modules = {
        name: (module.out_features, module.in_features)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    adapted = peft.get_peft_model(
        model,
        peft.LoraConfig(
            r=3,
            lora_alpha=5,
            target_modules=["up_proj", "down_proj"],
            rank_pattern={"down_proj": 2},
            use_rslora=True,
            init_lora_weights=False,
            layers_to_transform=[1],
            layers_pattern="layers",
            task_type="FEATURE_EXTRACTION",
        ),
    )
    folder = tmp_path / "tiny-one"
    adapted.save_pretrained(folder)
    skill = load_skill(folder)
    check_adapter(skill)
    adapter = load_adapter(skill)
    found, pairs = adapter.config, adapter.pairs
    check_against_modules(pairs, modules, found)
    assert sorted(pairs) == ["layers.1.down_proj", "layers.1.up_proj"]

    x = torch.randn(4, 8)
    expected = adapted.base_model(x)
    with adapted.disable_adapter():
        base = model.layers[0](x)
        block = model.layers[1]
        up, down = pairs["layers.1.up_proj"], pairs["layers.1.down_proj"]
        hidden = block.up_proj(base) + up.scaling * (base @ up.a.T) @ up.b.T
        ours = block.down_proj(hidden) + down.scaling * (hidden @ down.a.T) @ down.b.T
    torch.testing.assert_close(ours, expected)


# ---------------------------------------------------------------- fingerprints


@pytest.mark.parametrize(
    ("trained_on", "declared", "status"),
    [
        ("this", (), "match"),
        ("this", ("this",), "match"),
        ("other", ("this",), "declared"),
        (None, ("this",), "declared"),
        (None, (), "unknown"),
        (None, ("third",), "unknown"),
    ],
)
def test_how_an_adapter_meets_a_backbone(trained_on, declared, status):
    metadata = {} if trained_on is None else {BACKBONE_KEY: trained_on}
    assert fingerprint_status(metadata, "this", declared) == status


@pytest.mark.parametrize("declared", [(), ("third",)])
def test_an_adapter_of_another_backbone_is_refused_with_the_way_to_declare_it(declared):
    with pytest.raises(AdapterError, match=r"trained on the backbone other.*backbones:"):
        fingerprint_status({BACKBONE_KEY: "other"}, "this", declared)


# ---------------------------------------------------------------- whole skills


def test_a_bad_head_is_found_too(tmp_path):
    folder = tmp_path / "clause-finder"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(config().model_dump()))
    save_file(tensors(), folder / "adapter_model.safetensors")
    save_numpy({"w": np.full(3, np.nan, dtype=np.float32)}, folder / "head.safetensors")
    with pytest.raises(AdapterError, match=r"head\.safetensors: w: holds a NaN"):
        check_adapter(load_skill(folder))
