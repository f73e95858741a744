"""A whole training: it learns, what it leaves is PEFT's own, and serving gives the same numbers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from rich.console import Console
from rich.progress import Progress
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from agentkit.adapters.heads import ChoiceHead, build_head
from agentkit.adapters.weights import BACKBONE_KEY, check_adapter
from agentkit.engine.engine import Engine
from agentkit.errors import AdapterError, InputError, SkillError
from agentkit.output import generation_schema, to_output
from agentkit.prompt import encode_prompt, frame_of, number_spans, skill_prompt
from agentkit.retrieval.loaders import document_from_text
from agentkit.skill.folder import Skill, load_skill
from agentkit.testing import TinyBackbone
from agentkit.training.attention import use_block_attention
from agentkit.training.backbone import load_frozen
from agentkit.training.fitting import _Clock
from agentkit.training.lower import LowerStates, layers_only
from agentkit.training.methods import Attached, attach
from agentkit.training.model import (
    PackModel,
    choice_features,
    label_features,
    probed_features,
)
from agentkit.training.packs import Pack, Packer
from agentkit.training.rows import Row
from agentkit.training.spec import TrainSpec
from agentkit.training.start import read_start
from agentkit.training.train import Trained, train_skill
from agentkit.types import EncodedPrompt, Generation, Request

KINDS = ("choice", "marks", "generate", "chosen", "probed", "likelihood")
HEADS = ("choice", "marks", "chosen", "probed")
WORDS = ("red", "blue")


@dataclass(frozen=True)
class Done:
    toy: Any
    trained: Trained
    said: str


@pytest.fixture(scope="module", params=KINDS)
def done(request, make_toy: Callable[..., Any], tmp_path_factory) -> Done:
    """One training of each kind, looked at by every test below."""
    steps = (
        70 if request.param in ("generate", "chosen", "probed") else 40
    )  # it learns to write JSON first
    toy = make_toy(request.param, tmp_path_factory.mktemp(request.param), steps=steps)
    return Done(toy, *toy.train())


@pytest.fixture(scope="module")
def served(done: Done):
    """The trained skill in an engine."""
    skill = load_skill(done.toy.folder)
    with Engine.open(done.toy.settings) as engine:
        engine.load(skill)
        yield engine, skill


class Model:
    """The pack model as training left it, put together from the files that it wrote."""

    def __init__(self, toy: Any, work: Path) -> None:
        path = toy.settings.backbone
        self.model: Any = AutoModelForCausalLM.from_pretrained(path, local_files_only=True).eval()
        use_block_attention(self.model)
        self.work = work
        self.peft = PeftModel.from_pretrained(self.model, str(toy.folder)).eval()
        self.head = None
        weights = toy.folder / "head.safetensors"
        if weights.exists():
            with safe_open(weights, framework="pt") as file:
                kind = file.metadata()["agentkit.head"]
            self.head = build_head(kind, load_file(weights), where="head")

    def lower(self, pack: Pack) -> torch.Tensor:
        states = LowerStates(self.work / "lower", hidden=48, key=str, dtype=torch.float32)
        with Progress(disable=True) as progress:
            states.compute(self.model.model, [pack], 2, progress)
        return states.get(pack)

    def states(self, pack: Pack) -> torch.Tensor:
        decoder, lower = self.model.model, self.lower(pack)
        with layers_only(decoder, range(2, 4), final_norm=True), torch.inference_mode():
            return PackModel(
                decoder, self.model.lm_head, self.head, 1.0, Attached(self.peft)
            ).states(pack, lower)

    def likelihood(self, prompt: EncodedPrompt, answer: list[int]) -> float:
        ids = [*prompt.ids, *answer]
        pack = Pack(ids=ids, branch=[0] * len(ids), positions=list(range(len(ids))))
        with torch.inference_mode():
            logits = self.model.lm_head(self.states(pack)).log_softmax(-1)
        at = len(prompt.ids) - 1
        return float(sum(logits[at + i, token] for i, token in enumerate(answer)))


def prompts(skill: Skill, toy: Any, tokenizer: Any) -> list[EncodedPrompt]:
    result = []
    for row in toy.rows[:4]:
        text = row["input"].get("document")
        spans = number_spans(document_from_text(text)) if text else ()
        prompt = skill_prompt(frame_of(tokenizer), skill.manifest, row["input"], spans)
        result.append(encode_prompt(tokenizer, prompt))
    return result


# ---------------------------------------------------------------- what it leaves


def test_the_loss_falls(done: Done) -> None:
    history = [entry["loss"] for entry in done.trained.metrics["loss"]]
    assert len(history) >= 3
    assert history[-1] < 0.7 * history[0]
    assert "loss" in done.said


def test_it_leaves_adapter_head_figures_and_card(done: Done) -> None:
    folder = done.toy.folder
    names = {path.name for path in folder.iterdir()}
    assert {
        "adapter_config.json",
        "adapter_model.safetensors",
        "metrics.json",
        "README.md",
    } <= names
    assert ("head.safetensors" in names) == (done.toy.kind in HEADS)
    assert not any(name.startswith(".") for name in names)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics == done.trained.metrics
    assert metrics["data"][0]["source"] == "rows.jsonl"
    assert metrics["training"]["layers"] == "2-3"
    assert "rows.jsonl" in (folder / "README.md").read_text()


def test_nothing_it_leaves_names_the_machine(done: Done) -> None:
    for name in ("adapter_config.json", "metrics.json", "README.md"):
        text = (done.toy.folder / name).read_text()
        assert str(done.toy.folder.parent) not in text
        assert done.toy.settings.backbone not in text
    config = json.loads((done.toy.folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] is None
    assert config["layers_to_transform"] == [2, 3]


def test_whoever_may_read_a_skills_card_may_read_its_weights(done: Done) -> None:
    files = [path for path in done.toy.folder.iterdir() if path.suffix in (".safetensors", ".json")]
    modes = {path.stat().st_mode for path in files}
    assert len(files) > 2
    assert len(modes) == 1


def test_an_adapter_names_its_modules_in_order(done: Done) -> None:
    modules = json.loads((done.toy.folder / "adapter_config.json").read_text())["target_modules"]
    assert len(modules) > 1
    assert modules == sorted(modules)


def test_the_adapter_remembers_its_backbone(done: Done, tiny_backbone: TinyBackbone) -> None:
    with safe_open(done.toy.folder / "adapter_model.safetensors", framework="pt") as file:
        assert file.metadata()[BACKBONE_KEY] == tiny_backbone.fingerprint
    assert done.trained.metrics["backbone"] == {
        "name": tiny_backbone.path.name,
        "fingerprint": tiny_backbone.fingerprint,
        "license": "as its owner says",
    }


def test_no_checkpoint_is_left_but_the_lower_states_are(done: Done) -> None:
    work = done.toy.settings.home / "training" / "toy-skill"
    assert sorted(path.name for path in work.iterdir()) == [
        "lock",
        "lower-states.bin",
        "lower-states.index",
    ]


def test_the_untrained_and_the_trained_are_measured_on_the_tuning_rows(done: Done) -> None:
    tuning = done.trained.metrics["tuning"]
    figure = {"choice": "accuracy", "marks": "mean_average_precision"}.get(done.toy.kind, "loss")
    if done.trained.metrics["data"][0]["tuning_rows"]:
        assert figure in tuning["untrained"]
        assert figure in tuning["trained"]
    else:
        assert tuning == {"untrained": {}, "trained": {}}


def test_the_folder_passes_the_checks_of_a_served_skill(done: Done) -> None:
    skill = load_skill(done.toy.folder)
    check_adapter(skill)
    assert skill.head == (done.toy.kind in HEADS)


def test_peft_loads_every_tensor_of_it(done: Done, tiny_backbone: TinyBackbone) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_backbone.path, local_files_only=True)
    model = PeftModel.from_pretrained(base, str(done.toy.folder))
    saved = load_file(done.toy.folder / "adapter_model.safetensors")
    held = {
        name.replace(".default", ""): tensor
        for name, tensor in model.state_dict().items()
        if "lora_" in name
    }
    assert held.keys() == saved.keys()
    assert all(torch.equal(held[name], saved[name].float()) for name in saved)
    assert any("lora_B" in name and saved[name].abs().sum() > 0 for name in saved)


# ---------------------------------------------------------------- serving equals training


def test_the_engine_gives_the_numbers_of_the_trained_model(
    done: Done, served: tuple[Engine, Skill], tmp_path: Path
) -> None:
    engine, skill = served
    model = Model(done.toy, tmp_path)
    encoded = prompts(skill, done.toy, engine.tokenizer)
    if done.toy.kind in HEADS:
        completions = engine.run([Request(e, adapter=skill.digest, read=True) for e in encoded])
    else:
        completions = engine.run([Request(e, adapter=skill.digest, choices=WORDS) for e in encoded])
    tokenizer = AutoTokenizer.from_pretrained(done.toy.settings.backbone)
    packer = Packer(tokenizer, frame_of(tokenizer), skill.manifest, 256)
    for row, prompt, completion in zip(done.toy.rows, encoded, completions, strict=False):
        assert not isinstance(completion, Exception), completion
        if done.toy.kind in ("generate", "likelihood"):
            ids = [tokenizer(word, add_special_tokens=False)["input_ids"] for word in WORDS]
            scores = torch.tensor([model.likelihood(prompt, answer) for answer in ids])
            wanted = scores.softmax(-1).tolist()
            assert list(completion.choices.values()) == pytest.approx(wanted, abs=1e-3)
            continue
        (pack,) = packer.pack([Row(row["input"], row["expected"], "g")])
        hidden = model.states(pack)
        with torch.inference_mode():
            if done.toy.kind == "probed":
                probed = model.head(probed_features(model.head, pack, model.lower(pack)))
                pairs = [(completion.reading.choices, probed[0].softmax(-1))]
            elif done.toy.kind in ("choice", "chosen"):
                choices, evidence = model.head(*choice_features(pack, hidden))
                pairs = [
                    (completion.reading.choices, choices[0].softmax(-1)),
                    (completion.reading.evidence, evidence[0].sigmoid()),
                ]
            else:
                spans, tokens = model.head(*label_features(pack, hidden))
                pairs = [
                    (completion.reading.span_labels, spans.sigmoid()),
                    (completion.reading.token_labels, tokens.sigmoid()),
                ]
        for ours, theirs in pairs:
            np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-3)


def test_what_was_learnt_is_what_is_answered(done: Done, served: tuple[Engine, Skill]) -> None:
    engine, skill = served
    right = 0
    encoded = prompts(skill, done.toy, engine.tokenizer)
    for row, prompt in zip(done.toy.rows, encoded, strict=False):
        request = Request(prompt, adapter=skill.digest)
        if done.toy.kind in ("choice", "marks"):
            request = Request(prompt, adapter=skill.digest, read=True)
        elif done.toy.kind == "likelihood":
            request = Request(prompt, adapter=skill.digest, choices=WORDS)
        else:
            request = Request(
                prompt,
                adapter=skill.digest,
                schema=generation_schema(skill.manifest, prompt.prompt),
                choice_field=skill.manifest.answer.choice_field,
                generation=Generation(max_tokens=60),
            )
        output = to_output(skill.manifest, [(prompt, engine.submit(request).result(60))])
        if done.toy.kind == "marks":
            text = row["input"]["document"]
            assert all(text[m["start"] : m["end"]] == m["quote"] for m in output["marks"])
            right += bool(output["marks"])
        else:
            wanted = row["expected"]
            right += all(output[key] == wanted[key] for key in output if key in WORDS_OF_ANSWER)
    assert right >= len(encoded) // 2


WORDS_OF_ANSWER = ("answer", "said", "colour")


# ---------------------------------------------------------------- killed, and called again

SCRIPT = """
import sys
from pathlib import Path
from rich.console import Console
from agentkit.settings import Settings
from agentkit.training.train import train_skill

folder, home, backbone = sys.argv[1:]
train_skill(
    Path(folder),
    settings=Settings(home=home, backbone=backbone, dtype="float32", threads=1),
    data_dir=Path(folder),
    console=Console(file=sys.stdout, width=200),
)
"""


@pytest.mark.parametrize("kind", ["generate", "choice"])
def test_a_training_that_was_killed_goes_on_and_ends_as_if_it_had_not_been(
    kind: str, make_toy: Callable[..., Any], tmp_path: Path
) -> None:
    toy = make_toy(kind, tmp_path / "killed", steps=70)
    whole = make_toy(kind, tmp_path / "whole", steps=70)
    process = subprocess.Popen(
        [
            sys.executable,
            "-u",
            "-c",
            SCRIPT,
            str(toy.folder),
            str(toy.settings.home),
            toy.settings.backbone,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if line.startswith("step 30/"):  # the checkpoint of step 25 is written by then
                break
    finally:
        process.send_signal(signal.SIGKILL)
        process.stdout.close()
    assert process.wait() == -signal.SIGKILL
    assert not (toy.folder / "adapter_model.safetensors").exists()

    (checkpoint,) = toy.settings.home.glob("training/toy-skill/checkpoints/*/checkpoint-25")
    assert 0 < float((checkpoint / "seconds").read_text()) < 300
    (noted,) = toy.settings.home.glob("training/toy-skill/spent-*.json")
    spent = json.loads(noted.read_text())
    assert 0 < spent["seconds"] < 300
    assert spent["peak_memory"] > 10**8
    much = {"seconds": 1000.0, "peak_memory": 10**12}
    noted.write_text(json.dumps(spent | much))  # as if it had taken long, and much
    cut_short = checkpoint.with_name("checkpoint-999")  # as a kill amid writing leaves it
    shutil.copytree(checkpoint, cut_short)
    state = cut_short / "trainer_state.json"
    state.write_text(state.read_text()[:40])

    _, said = toy.train()
    left = [float(line.split()[-3]) for line in said.splitlines() if line.endswith(" min left")]
    assert left[-1] == 0
    assert all(minutes >= 0 for minutes in left)
    steps = [line.split("/")[0] for line in said.splitlines() if line.startswith("step ")]
    assert steps[0] == "step 30"
    assert "goes on from step 25 of an earlier start" in said
    trained, _ = whole.train()
    for file in ["adapter_model.safetensors"] + ["head.safetensors"] * (kind == "choice"):
        ours, theirs = (load_file(folder / file) for folder in (toy.folder, whole.folder))
        for name, tensor in theirs.items():
            torch.testing.assert_close(ours[name], tensor, atol=1e-5, rtol=1e-4)
    resumed = json.loads((toy.folder / "metrics.json").read_text())
    assert resumed["seconds"] > 1000
    assert resumed["peak_memory_bytes"] == 10**12
    assert resumed["lower_states_found"] == 0  # this training's own, of its first start
    assert not noted.exists()
    assert [h["step"] for h in resumed["loss"]] == [h["step"] for h in trained.metrics["loss"]]
    assert resumed["loss"][-1] == pytest.approx(trained.metrics["loss"][-1], rel=1e-3)


def test_another_train_yaml_starts_afresh(make_toy: Callable[..., Any], tmp_path: Path) -> None:
    toy = make_toy("likelihood", tmp_path, steps=10)
    work = toy.settings.home / "training" / "toy-skill" / "checkpoints"
    stale = work / ("0" * 16) / "checkpoint-25"
    stale.mkdir(parents=True)
    (stale / "trainer_state.json").write_text('{"global_step": 25}')
    _, said = toy.train()
    assert "step 10/10" in said
    assert list(work.iterdir()) == [stale.parent]  # another training's may go on from there


class _Loses(StringIO):
    """Where an interrupt comes with the first step's line, and is lost."""

    def write(self, text: str) -> int:
        if "step " in text:
            with suppress(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        return super().write(text)


def test_an_interrupt_that_was_lost_ends_a_training_all_the_same(
    make_toy: Callable[..., Any], tmp_path: Path
) -> None:
    toy = make_toy("likelihood", tmp_path, steps=200)
    said = _Loses()
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train_skill(
            toy.folder, settings=toy.settings, data_dir=toy.folder, console=Console(file=said)
        )
    assert "step 10/" in said.getvalue()
    assert "step 20/" not in said.getvalue()
    assert signal.getsignal(signal.SIGINT) is before


def test_training_ends_when_its_minutes_are_over(
    make_toy: Callable[..., Any], tmp_path: Path
) -> None:
    toy = make_toy("likelihood", tmp_path, steps=5000, max_minutes=0.001)
    trained, said = toy.train()
    assert (toy.folder / "adapter_model.safetensors").exists()
    assert "ended by max_minutes at step " in said
    assert "  0.0 min left" in said
    assert max((h["step"] for h in trained.metrics["loss"]), default=0) < 5000


def test_what_a_training_learnt_is_kept_when_it_is_killed_after_its_minutes(
    make_toy: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = make_toy("likelihood", tmp_path, steps=5000, max_minutes=0.002)

    def killed(*given: Any) -> None:
        raise KeyboardInterrupt

    told = StringIO()
    console = Console(file=told, width=200)
    with monkeypatch.context() as patched:
        patched.setattr("agentkit.training.train.calibrate", killed)
        with pytest.raises(KeyboardInterrupt):
            train_skill(toy.folder, settings=toy.settings, data_dir=toy.folder, console=console)
    kept = max(int(path.name.split("-")[1]) for path in tmp_path.rglob("checkpoint-*"))
    assert f"ended by max_minutes at step {kept} of" in told.getvalue()
    trained, said = toy.train()
    assert f"goes on from step {kept} of an earlier start" in said
    assert trained.metrics["loss"][-1]["step"] <= kept + 1


def test_minutes_count_over_all_starts_of_a_training(tmp_path: Path) -> None:
    (tmp_path / "seconds").write_text("100.0")
    again = _Clock(str(tmp_path))
    assert again.seconds >= 100
    again.save(tmp_path)
    assert float((tmp_path / "seconds").read_text()) >= 100
    assert _Clock(None).seconds < 100


# ---------------------------------------------------------------- a head alone


def before_the_norm(model: Any, pack: Pack) -> torch.Tensor:
    """What the last layer gives of a pack's tokens, `(tokens, hidden)`."""
    given: list[torch.Tensor] = []
    hook = model.model.norm.register_forward_pre_hook(lambda _, args: given.append(args[0][0]))
    model.model(input_ids=torch.tensor([pack.ids]))
    hook.remove()
    return given[0]


@pytest.mark.parametrize("kind", ["choice", "marks", "probed"])
def test_a_head_alone_is_trained_on_the_frozen_backbone_and_served_without_an_adapter(
    make_toy: Callable[..., Any], tmp_path: Path, kind: str
) -> None:
    toy = make_toy(kind, tmp_path, method="head", steps=60)
    (toy.folder / "adapter_config.json").write_text("{}")  # of an earlier training
    (toy.folder / "adapter_model.safetensors").write_text("")
    trained, _ = toy.train()
    assert {"adapter_config.json", "adapter_model.safetensors"}.isdisjoint(
        path.name for path in toy.folder.iterdir()
    )
    losses = [entry["loss"] for entry in trained.metrics["loss"]]
    # A probe takes no steps.
    assert losses == [] if kind == "probed" else losses[-1] < 0.8 * losses[0]
    skill = load_skill(toy.folder)
    check_adapter(skill)
    tokenizer = AutoTokenizer.from_pretrained(toy.settings.backbone)
    plain: Any = AutoModelForCausalLM.from_pretrained(toy.settings.backbone).eval()
    head = build_head(
        {"choice": "choice", "marks": "span-labels", "probed": "probe"}[kind],
        load_file(toy.folder / "head.safetensors"),
        where="head",
    )
    with Engine.open(toy.settings) as engine:
        engine.load(skill)
        found = engine.loaded[skill.digest]
        assert (found.kind, found.fingerprint) == ("head", "match")
        held = [*head.parameters(), *head.buffers()]
        assert found.nbytes == sum(tensor.nbytes for tensor in held)  # no adapter beside it
        encoded = prompts(skill, toy, engine.tokenizer)
        completions = engine.run([Request(e, adapter=skill.digest, read=True) for e in encoded])
    packer = Packer(tokenizer, frame_of(tokenizer), skill.manifest, 256)
    for row, completion in zip(toy.rows, completions, strict=False):
        assert not isinstance(completion, Exception), completion
        (pack,) = packer.pack([Row(row["input"], row["expected"], "g")])
        with torch.inference_mode():
            hidden = plain.model(input_ids=torch.tensor([pack.ids])).last_hidden_state[0]
            if kind == "probed":
                below = before_the_norm(plain, pack)
                wanted = head(probed_features(head, pack, below))[0].softmax(-1)
                ours = completion.reading.choices
            elif kind == "choice":
                wanted = head(*choice_features(pack, hidden))[0][0].softmax(-1)
                ours = completion.reading.choices
            else:
                wanted = head(*label_features(pack, hidden))[0].sigmoid()
                ours = completion.reading.span_labels
        np.testing.assert_allclose(ours, wanted.numpy(), atol=1e-3)


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "head"},
        {"layers": "auto", "probe_packs": 8},
        {"search": {"minutes": 0.05, "trials": 2, "method": ["head", "lora"], "rank": []}},
    ],
    ids=["alone", "warmed", "searched"],
)
def test_inputs_that_all_give_the_choice_teach_a_head_nothing(
    make_toy: Callable[..., Any], tmp_path: Path, settings: dict[str, Any]
) -> None:
    data = [{"path": "rows.jsonl", "tuning": 0.0}]
    toy = make_toy("chosen", tmp_path, steps=4, pack_tokens=128, data=data, **settings)
    manifest = json.loads((toy.folder / "skill.yaml").read_text("utf-8"))
    manifest["answer"]["choice_given"] = "{{ colour | default('') }}"
    manifest["retrieval"] = {"document": "document"}
    manifest["input"]["properties"]["document"] = {"type": "string"}
    (toy.folder / "skill.yaml").write_text(json.dumps(manifest))
    rows = []
    for at, row in enumerate(toy.rows):
        given = {"colour": row["expected"]["colour"]} if at % 4 >= 2 else {}
        document = {"document": f"Shed {at % 4}."}
        rows.append(row | {"input": row["input"] | document | given})
    (toy.folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    trained, _ = toy.train()
    assert trained.metrics["packs"] >= (2 if settings.get("method") else 4)
    assert all(entry["loss"] > 0 for entry in trained.metrics["loss"])


def test_an_epoch_is_a_pass_over_all_packs_whatever_a_step_takes(
    make_toy: Callable[..., Any], tmp_path: Path
) -> None:
    toy = make_toy("marks", tmp_path, epochs=3.0, packs_per_step=12)
    trained, _ = toy.train()
    packs = trained.metrics["packs"]
    assert 12 < packs <= 16
    assert [entry["step"] for entry in trained.metrics["loss"]] == [1, 2, 3, 4, 5, 6]
    assert "3 epochs" in " ".join((toy.folder / "README.md").read_text("utf-8").split())


def test_a_head_that_lost_its_adapter_is_not_served(
    make_toy: Callable[..., Any], tmp_path: Path
) -> None:
    toy = make_toy("choice", tmp_path, steps=4)
    toy.train()
    (toy.folder / "adapter_config.json").unlink()
    (toy.folder / "adapter_model.safetensors").unlink()
    skill = load_skill(toy.folder)
    with pytest.raises(AdapterError, match="trained with an adapter, which is missing"):
        check_adapter(skill)
    with Engine.open(toy.settings) as engine, pytest.raises(AdapterError, match="is missing"):
        engine.load(skill)


def _reordered(manifest: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """The manifest with other answers, in this order; of marks the first two labels."""
    changed: dict[str, Any] = json.loads(json.dumps(manifest))
    if "labels" in changed["answer"]:
        changed["answer"]["labels"][:2] = [{"name": name} for name in names]
    elif "choices" in changed["answer"]:
        changed["answer"]["choices"] = names
    else:
        changed["output"]["properties"]["colour"]["enum"] = names
    return changed


@pytest.mark.parametrize(
    ("kind", "names", "message"),
    [
        ("choice", ["blue", "red", "silent"], "answer 1 was trained as 'red'; in .* is 'blue'"),
        ("choice", ["red", "silent", "blue"], "answer 2 was trained as 'blue'; .* is 'silent'"),
        ("marks", ["blue", "red"], "answer 1 was trained as 'sentence: red'"),
        ("chosen", ["blue", "red"], "answer 1 was trained as 'red'"),
        ("probed", ["red", "blue", "green"], "was trained for 2 answers; skill.yaml has 3"),
    ],
)
def test_a_head_is_served_only_for_the_answers_it_was_trained_to_give(
    make_toy: Callable[..., Any], tmp_path: Path, kind: str, names: list[str], message: str
) -> None:
    toy = make_toy(kind, tmp_path, steps=2)
    toy.train()
    check_adapter(load_skill(toy.folder))
    trained = json.loads((toy.folder / "skill.yaml").read_text())
    (toy.folder / "skill.yaml").write_text(json.dumps(_reordered(trained, names)))
    skill = load_skill(toy.folder)
    with pytest.raises(AdapterError, match=message):
        check_adapter(skill)
    with Engine.open(toy.settings) as engine, pytest.raises(AdapterError, match=message):
        engine.load(skill)


def test_a_label_of_another_unit_may_stand_anywhere(
    make_toy: Callable[..., Any], tmp_path: Path
) -> None:
    toy = make_toy("marks", tmp_path, steps=2)
    toy.train()
    manifest = json.loads((toy.folder / "skill.yaml").read_text())
    labels = manifest["answer"]["labels"]
    manifest["answer"]["labels"] = [labels[2], labels[0], labels[1]]  # a token's, two sentences'
    (toy.folder / "skill.yaml").write_text(json.dumps(manifest))
    check_adapter(load_skill(toy.folder))


@pytest.mark.parametrize("changes", [{"size": "auto"}, {"search": {"trials": 1}}])
def test_a_head_alone_has_nothing_to_search_for(
    make_toy: Callable[..., Any], tmp_path: Path, changes: dict[str, Any]
) -> None:
    toy = make_toy("choice", tmp_path, method="head", **changes)
    with pytest.raises(SkillError, match="neither layers nor a size"):
        toy.train()


# ---------------------------------------------------------------- what cannot be trained


def rewrite(toy: Any, **changes: Any) -> None:
    path = toy.folder / "train.yaml"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"method": "head"}, SkillError, "no task head to train"),
        ({"layers": "2-9"}, SkillError, "is not a range within 0-3"),
        ({"data": [{"path": "gone.jsonl"}]}, InputError, "gone.jsonl"),
        ({"modules": ["no_such_proj"]}, SkillError, "no_such_proj"),
        ({"data": [{"path": "rows.jsonl", "limit": 1, "tuning": 0.999}]}, InputError, "no pack"),
    ],
)
def test_what_cannot_be_trained_says_why(
    make_toy: Callable[..., Any],
    tmp_path: Path,
    changes: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    toy = make_toy("likelihood", tmp_path)
    rewrite(toy, **changes)
    with pytest.raises(error, match=message) as raised:
        toy.train()
    assert raised.value.exit_code == 2
    assert not (toy.folder / "adapter_model.safetensors").exists()


# ---------------------------------------------------------------- methods and layers


METHODS = ("lora", "dora", "alora", "bottleneck", "hybrid", "prefix")


@pytest.mark.parametrize("method", METHODS)
def test_what_every_method_learns_is_served(
    make_toy: Callable[..., Any], tmp_path: Path, method: str
) -> None:
    more = {"layers": "all", "learning_rate": 0.1} if method == "prefix" else {}
    toy = make_toy("likelihood", tmp_path, method=method, reduction_factor=4, **more)
    trained, _ = toy.train()
    losses = [entry["loss"] for entry in trained.metrics["loss"]]
    assert losses[-1] < losses[0]
    assert trained.metrics["training"]["method"] == method
    skill = load_skill(toy.folder)
    with Engine.open(toy.settings) as engine:
        engine.load(skill)
        right = 0
        for row, prompt in zip(toy.rows, prompts(skill, toy, engine.tokenizer), strict=False):
            request = Request(prompt, adapter=skill.digest, choices=WORDS)
            chances = engine.submit(request).result(60).choices
            right += max(chances, key=chances.__getitem__) == row["expected"]["colour"]
    assert right >= 3  # of 4


def test_an_activated_adapter_cannot_label_the_document(
    make_toy: Callable[..., Any], tmp_path: Path
) -> None:
    searched = {"search": {"method": ["lora", "alora"]}}
    for number, changes in enumerate(({"method": "alora"}, searched)):
        toy = make_toy("marks", tmp_path / str(number), **changes)
        with pytest.raises(SkillError, match="acts after the document"):
            toy.train()


@pytest.mark.parametrize("layers", ["2-3", "auto"])
def test_a_prefix_takes_all_layers(
    make_toy: Callable[..., Any], tmp_path: Path, layers: str
) -> None:
    toy = make_toy("likelihood", tmp_path, method="prefix", layers=layers)
    with pytest.raises(SkillError, match="conditions every layer"):
        toy.train()


def test_untrained_figures_are_those_of_the_bare_backbone(
    make_toy: Callable[..., Any], tmp_path: Path
) -> None:
    losses = []
    for method in ("lora", "prefix"):
        data = [{"path": "rows.jsonl", "tuning": 0.5}]
        toy = make_toy(
            "likelihood", tmp_path / method, steps=2, method=method, layers="all", data=data
        )
        losses.append(toy.train()[0].metrics["tuning"]["untrained"]["loss"])
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_a_head_of_an_earlier_training_goes_with_it(
    make_toy: Callable[..., Any], tmp_path: Path
) -> None:
    toy = make_toy("choice", tmp_path, steps=2)
    toy.train()
    manifest = json.loads((toy.folder / "skill.yaml").read_text())
    manifest["answer"] |= {"scoring": "likelihood", "evidence_field": None, "no_evidence": []}
    (toy.folder / "skill.yaml").write_text(json.dumps(manifest))
    (toy.folder / ".fresh").mkdir()  # as a kill leaves it
    (toy.folder / ".fresh" / "head.safetensors").write_bytes(b"of another training")
    toy.train()
    assert not (toy.folder / "head.safetensors").exists()
    check_adapter(load_skill(toy.folder))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"size": "auto"}, "size: auto"),
        ({"search": {"trials": 1}}, "search.rank"),
        ({"search": {"trials": 1, "rank": [], "method": ["lora", "dora"]}}, "search.method"),
    ],
)
def test_an_adapter_to_start_from_leaves_no_size_to_be_found(
    make_toy: Callable[..., Any], tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    pytest.importorskip("optuna")
    first = make_toy("likelihood", tmp_path / "first", steps=2)
    first.train()
    toy = make_toy("likelihood", tmp_path, start_from=str(first.folder), **changes)
    with pytest.raises(SkillError, match=f"its method and size: {named} would find another"):
        toy.train()


@pytest.mark.parametrize(
    ("importance", "kind"),
    [("gradient", "choice"), ("attention", "likelihood"), ("validation", "marks")],
)
def test_auto_layers_are_chosen_scored_drawn_and_can_be_reused(
    make_toy: Callable[..., Any], tmp_path: Path, importance: str, kind: str
) -> None:
    count = {} if importance == "validation" else {"layer_count": 2}
    toy = make_toy(kind, tmp_path, steps=10, layers="auto", importance=importance, **count)
    trained, _ = toy.train()
    layers = trained.metrics["layers"]
    assert layers["method"] == importance
    assert len(layers["scores"]) == 4
    assert importance == "validation" or len(layers["chosen"]) == 2
    config = json.loads((toy.folder / "adapter_config.json").read_text())
    assert sorted(config["layers_to_transform"]) == list(layers["chosen"])
    assert (toy.folder / "layers.svg").read_text().lstrip().startswith("<?xml")

    other = make_toy("likelihood", tmp_path / "other", steps=4, layers_of=str(toy.folder))
    again, _ = other.train()
    assert again.metrics["layers"]["chosen"] == layers["chosen"]


def test_a_skill_can_start_from_a_trained_one(make_toy: Callable[..., Any], tmp_path: Path) -> None:
    general = make_toy("likelihood", tmp_path / "general", layers="1-3")
    general.train()
    fresh = make_toy("likelihood", tmp_path / "fresh", steps=10)
    staged = make_toy("likelihood", tmp_path / "staged", steps=10, start_from=str(general.folder))
    first = [toy.train()[0].metrics["loss"][0]["loss"] for toy in (fresh, staged)]
    assert first[1] < first[0] / 2
    metrics = (staged.folder / "metrics.json").read_text()
    assert json.loads(metrics)["training"]["start_from"] == "toy-skill"
    assert str(general.folder) not in metrics


def test_a_head_that_is_started_from_gives_what_fits(
    make_toy: Callable[..., Any], tmp_path: Path
) -> None:
    data = [{"path": "rows.jsonl", "tuning": 0.3}]
    general = make_toy("choice", tmp_path / "general", steps=30, data=data)
    general.train()
    staged = make_toy(
        "choice", tmp_path / "staged", steps=2, data=data, start_from=str(general.folder)
    )
    tuning = staged.train()[0].metrics["tuning"]
    before = json.loads((general.folder / "metrics.json").read_text())["tuning"]
    assert list(tuning) == ["untrained", "start", "trained"]
    assert tuning["start"]["f1"] == before["trained"]["f1"]
    # Of the bare backbone, whatever is begun with.
    assert tuning["untrained"] == before["untrained"]
    assert tuning["start"] != tuning["untrained"]
    assert "| figure | untrained | start | trained |" in (staged.folder / "README.md").read_text()
    narrow = ChoiceHead(48, 5)
    spec = TrainSpec(data=({"path": "x"},), dtype="float32", rank=4)
    model = load_frozen(Path(general.settings.backbone), spec)
    before = narrow.choice.weight.clone()
    attached = attach(model, spec, [2, 3], ())
    start = read_start(attached, narrow, general.folder)
    start.give(attached, narrow)
    assert torch.equal(narrow.choice.weight, before)
    assert torch.equal(
        narrow.query.weight, load_file(general.folder / "head.safetensors")["query.weight"]
    )


def test_an_adapter_starts_from_a_head_that_was_trained_alone(
    make_toy: Callable[..., Any], tmp_path: Path
) -> None:
    probe = make_toy("choice", tmp_path / "probe", method="head", steps=4)
    probe.train()
    adapted = make_toy("choice", tmp_path / "adapted", steps=2, start_from=str(probe.folder))
    adapted.train()
    assert (adapted.folder / "adapter_model.safetensors").is_file()
    spec = TrainSpec(data=({"path": "x"},), dtype="float32", rank=4)
    attached = attach(load_frozen(Path(probe.settings.backbone), spec), spec, [2, 3], ())
    before = {name: tensor.clone() for name, tensor in attached.tensors().items()}
    head = ChoiceHead(48, 3)
    read_start(attached, head, probe.folder).give(attached, head)
    read = load_file(probe.folder / "head.safetensors")
    assert all(torch.equal(value, read[name]) for name, value in head.named_parameters())
    assert all(torch.equal(value, before[name]) for name, value in attached.tensors().items())


def test_another_backbones_adapter_cannot_be_started_from(
    make_toy: Callable[..., Any], tmp_path: Path
) -> None:
    general = make_toy("likelihood", tmp_path / "general", steps=2)
    general.train()
    weights = general.folder / "adapter_model.safetensors"
    save_file(load_file(weights), weights, metadata={BACKBONE_KEY: "f" * 64})
    staged = make_toy("likelihood", tmp_path / "staged", steps=2, start_from=str(general.folder))
    with pytest.raises(SkillError, match="was trained on the backbone ffffffffffff, not"):
        staged.train()


@pytest.mark.parametrize(("can", "name"), [({}, "float32"), ({"avx512_bf16": True}, "bfloat16")])
def test_a_training_computes_in_what_the_machine_has_instructions_for(
    make_toy: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    can: dict[str, bool],
    name: str,
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: can)
    toy = make_toy("likelihood", tmp_path, steps=1, dtype="auto")
    assert toy.train()[0].metrics["training"]["dtype"] == name
    adapter = load_file(toy.folder / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in adapter.values()} == {getattr(torch, name)}


@pytest.mark.parametrize("method", ["bottleneck", "hybrid"])
def test_auto_layers_are_chosen_for_other_methods_too(
    make_toy: Callable[..., Any], tmp_path: Path, method: str
) -> None:
    toy = make_toy("choice", tmp_path, steps=4, layers="auto", method=method, probe_packs=4)
    layers = toy.train()[0].metrics["layers"]
    assert (layers["method"], len(layers["scores"])) == ("validation", 4)
    config = json.loads((toy.folder / "adapter_config.json").read_text())
    for part in [config] if method == "bottleneck" else [config["lora"], config["bottleneck"]]:
        assert sorted(part["layers_to_transform"]) == list(layers["chosen"])
    check_adapter(load_skill(toy.folder))


def test_a_short_training_shows_every_step_and_old_pictures_go(
    make_toy: Callable[..., Any], tmp_path: Path
) -> None:
    toy = make_toy("likelihood", tmp_path, steps=3)
    for name in ("layers.svg", "search.svg"):
        (toy.folder / name).write_text("<svg/>")
    trained, _ = toy.train()
    assert [entry["step"] for entry in trained.metrics["loss"]] == [1, 2, 3]
    assert (toy.folder / "training.svg").exists()
    assert "`training.svg` is the loss curve" in (toy.folder / "README.md").read_text()
    assert not (toy.folder / "layers.svg").exists()
    assert not (toy.folder / "search.svg").exists()


def test_an_adapter_of_another_size_cannot_be_started_from(
    make_toy: Callable[..., Any], tmp_path: Path
) -> None:
    general = make_toy("likelihood", tmp_path / "general", steps=2)
    general.train()
    for folder, changes, message in (
        (general.folder, {"rank": 8}, "an adapter of the same rank"),
        (tmp_path, {}, "cannot be read"),
        (general.folder, {"layers": "0-1"}, "none of its tensors fits"),
    ):
        at = tmp_path / message.replace(" ", "-")
        toy = make_toy("likelihood", at, start_from=str(folder), **changes)
        with pytest.raises(SkillError, match=message):
            toy.train()
        # Said before the lower layers are computed, which may take minutes.
        assert not list(toy.settings.home.rglob("lower-states.bin"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"layers": "1-3"}, "28 of the adapter's 42 tensors"),
        ({"method": "hybrid"}, "28 of the adapter's 36 tensors"),
        ({"alpha": 4}, "28 of the adapter's 28 tensors, which count there 2 times, here 1 times"),
    ],
)
def test_how_much_of_a_start_fits_is_told(
    make_toy: Callable[..., Any], tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    general = make_toy("likelihood", tmp_path / "general", steps=2)
    general.train()
    toy = make_toy(
        "likelihood", tmp_path / "staged", steps=2, start_from=str(general.folder), **changes
    )
    _, told = toy.train()
    assert f"starts from toy-skill with {said}" in " ".join(told.split())


def test_a_size_is_chosen_by_what_it_gains(make_toy: Callable[..., Any], tmp_path: Path) -> None:
    toy = make_toy("likelihood", tmp_path, steps=4, size="auto")
    trained, said = toy.train()
    rank = trained.metrics["training"]["rank"]
    assert str(rank) in trained.metrics["sizes"]
    assert f"size: rank {rank}" in said
    assert trained.metrics["training"]["alpha"] == 2 * rank
    assert json.loads((toy.folder / "adapter_config.json").read_text())["r"] == rank


def test_a_search_finds_settings_within_its_space_keeps_its_picture_and_goes_on(
    make_toy: Callable[..., Any], tmp_path: Path
) -> None:
    pytest.importorskip("optuna")
    space = {"trials": 3, "rank": [2, 4], "layers": ["2-3", "3"], "learning_rate": [1e-3, 1e-1]}
    toy = make_toy("likelihood", tmp_path, steps=4, search=space)
    trained, said = toy.train()
    record = trained.metrics["search"]
    assert f"rank {record['best']['rank']}" in " ".join(said.split())
    assert len(record["trials"]) == 3
    assert record["loss"] == pytest.approx(
        min(t["loss"] for t in record["trials"] if t["state"] == "complete"), abs=1e-4
    )
    settings = trained.metrics["training"]
    assert settings["rank"] in (2, 4)
    assert 1e-3 <= settings["learning_rate"] <= 1e-1
    assert (toy.folder / "search.svg").exists()
    again, _ = toy.train()  # the study is kept: nothing is tried anew
    assert again.metrics["search"] == record


def test_a_search_may_try_a_prefix_beside_methods_of_fewer_layers(
    make_toy: Callable[..., Any], tmp_path: Path
) -> None:
    pytest.importorskip("optuna")
    space = {"trials": 3, "rank": [2], "method": ["prefix"], "learning_rate": [1e-4, 2e-3]}
    toy = make_toy("likelihood", tmp_path, steps=4, layers="2-3", search=space)
    trained, _ = toy.train()
    settings = trained.metrics["training"]
    assert (settings["method"], settings["layers"]) == ("prefix", "all")
    assert 1e-3 <= settings["learning_rate"] <= 2e-2
    assert trained.metrics["layers"]["chosen"] == [0, 1, 2, 3]


@pytest.mark.parametrize("change", [{"cache_lower": False}, {"checkpointing": True}], ids=str)
def test_saving_time_or_memory_changes_nothing_that_is_learnt(
    make_toy: Callable[..., Any], tmp_path: Path, change: dict[str, bool]
) -> None:
    trained = []
    for number, changes in enumerate(({}, change)):
        toy = make_toy("choice", tmp_path / str(number), steps=20, **changes)
        toy.train()
        files = ("adapter_model.safetensors", "head.safetensors")
        trained.append({f: load_file(toy.folder / f) for f in files})
    for file, tensors in trained[0].items():
        for name, tensor in tensors.items():
            torch.testing.assert_close(trained[1][file][name], tensor, atol=1e-4, rtol=1e-3)
