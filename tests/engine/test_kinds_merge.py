"""A merged skill is a plain model with the very same logits; what cannot be merged says why."""

import json
from pathlib import Path

import pytest
import torch
from family_material import IDS, make_backbone, our_logits, peft_configs, peft_folder
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from agentkit.adapters.bottleneck import Bottlenecks
from agentkit.adapters.kinds import BottleneckConfig
from agentkit.adapters.saving import save_adapter
from agentkit.cli.app import run
from agentkit.engine.activation import Slots
from agentkit.engine.backbone import load_backbone
from agentkit.engine.install import prepare
from agentkit.engine.merge import merge
from agentkit.errors import AdapterError, InputError
from agentkit.skill.folder import load_skill

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_backbone("llama", tmp_path_factory.mktemp("merge") / "llama")


def served_logits(base: Path, folder: Path) -> torch.Tensor:
    backbone = load_backbone(base)
    slots = Slots(backbone.modules)
    slot = slots.fill(prepare(load_skill(folder), backbone).deltas)
    return our_logits(backbone, slots, slot, IDS)


def merged_logits(out: Path) -> torch.Tensor:
    model, report = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert len(AutoTokenizer.from_pretrained(out)) == 400
    with torch.inference_mode():
        logits: torch.Tensor = model(IDS[None]).logits[0]
    return logits


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2"])
@pytest.mark.parametrize("kind", ["lora", "lora-patterns", "dora"])
def test_a_merged_model_gives_the_skills_logits(family: str, kind: str, tmp_path: Path) -> None:
    base = make_backbone(family, tmp_path / family)
    folder = peft_folder(base, tmp_path / f"p-{kind}", peft_configs(family)[kind])
    merge(load_skill(folder), base, tmp_path / "out" / "model")
    out = tmp_path / "out" / "model"
    assert "agentkit" not in (out / "config.json").read_text()
    assert [path.name for path in out.parent.iterdir()] == ["model"]
    torch.testing.assert_close(merged_logits(out), served_logits(base, folder), atol=1e-4, rtol=0)


def test_a_tied_output_layer_gets_weights_of_its_own(tmp_path: Path) -> None:
    base = make_backbone("gpt2", tmp_path / "gpt2")
    config = LoraConfig(r=4, target_modules=["lm_head"], task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    with torch.no_grad():
        next(p for n, p in model.named_parameters() if "lora_B" in n).normal_(std=0.3)
    folder = tmp_path / "output"
    model.save_pretrained(str(folder), save_embedding_layers=False)
    (folder / "README.md").unlink()
    merge(load_skill(folder), base, tmp_path / "out")
    torch.testing.assert_close(
        merged_logits(tmp_path / "out"), served_logits(base, folder), atol=1e-4, rtol=0
    )


def test_kinds_that_are_no_change_of_weights_are_refused_with_the_reason(
    base: Path, tmp_path: Path
) -> None:
    configs = peft_configs("llama")
    backbone = load_backbone(base)
    bottlenecks = Bottlenecks(backbone.model, BottleneckConfig())
    folders = {
        "invocation on alone": peft_folder(base, tmp_path / "p-a", configs["activated"]),
        "keys and values before": peft_folder(base, tmp_path / "p-p", configs["prefix"]),
        "non-linearity": save_adapter(
            tmp_path / "p-b", BottleneckConfig(), bottlenecks.tensors(), backbone="f" * 64
        ),
    }
    for reason, folder in folders.items():
        with pytest.raises(AdapterError, match=f"cannot be merged: .*{reason}"):
            merge(load_skill(folder), base, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_is_written_over_and_an_adapter_of_another_backbone_is_refused(
    base: Path, tmp_path: Path
) -> None:
    folder = peft_folder(base, tmp_path / "p-lora", peft_configs("llama")["lora"])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note.txt").write_text("mine")
    with pytest.raises(InputError, match="something already"):
        merge(load_skill(folder), base, tmp_path / "full")
    other = make_backbone("phi3", tmp_path / "phi3")
    with pytest.raises(AdapterError, match="no linear layer"):
        merge(load_skill(folder), other, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_writes_the_model_and_says_what_it_cannot_merge(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configs = peft_configs("llama")
    for kind in ("dora", "prefix"):
        peft_folder(base, tmp_path / "skills" / f"p-{kind}", configs[kind])
    common = ["--skills", str(tmp_path / "skills"), "--set", f"backbone={base}"]
    common += ["--set", f"home={tmp_path / 'home'}"]
    out = tmp_path / "out"
    order = ["skills", "merge", "p-dora", "--out", str(out), "--dtype", "bfloat16", *common]
    assert run(order) == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    assert {t.dtype for t in load_file(out / "model.safetensors").values()} == {torch.bfloat16}
    assert run(["skills", "merge", "p-prefix", "--out", str(tmp_path / "no"), *common]) == 2
    assert "cannot be merged" in capsys.readouterr().err
    assert run(["skills", "merge", "nobody", "--out", str(tmp_path / "no"), *common]) == 2
