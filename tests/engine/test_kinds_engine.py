"""Every kind of adapter, asked through one engine at once: each answer is its solo PEFT answer."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from engine_material import QUESTIONS, Prompts, done, plain_prompt
from family_material import greedy, make_backbone, peft_configs, peft_folder
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from agentkit.adapters.bottleneck import Bottlenecks
from agentkit.adapters.heads import KIND
from agentkit.adapters.kinds import BottleneckConfig, HybridConfig, LoraConfig
from agentkit.adapters.lora import adapted_weight
from agentkit.adapters.saving import save_adapter
from agentkit.adapters.shapes import lora_key
from agentkit.adapters.weights import load_adapter
from agentkit.engine.backbone import load_backbone
from agentkit.engine.engine import Engine
from agentkit.errors import LimitError
from agentkit.prompt import frame_of
from agentkit.settings import Settings
from agentkit.skill.folder import load_skill
from agentkit.testing import tiny_choice_head
from agentkit.types import Completion, Generation, Request

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
TOKENS = 5
PEFT_KINDS = ("lora", "dora", "activated", "prefix")
OWN_KINDS = {
    "sequential": BottleneckConfig(placement="houlsby", reduction_factor=4),
    "parallel": BottleneckConfig(placement="houlsby", reduction_factor=4, parallel=True),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_backbone(
        "llama", tmp_path_factory.mktemp("asked") / "llama", max_position_embeddings=2048
    )


@pytest.fixture(scope="module")
def folders(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A skill of each kind, each with a task head."""
    root = tmp_path_factory.mktemp("asked-skills")
    configs = peft_configs("llama")
    backbone = load_backbone(base)
    invocation = backbone.tokenizer(
        frame_of(backbone.tokenizer).invocation, add_special_tokens=False
    )
    configs["activated"].alora_invocation_tokens = list(invocation["input_ids"])
    found = {kind: peft_folder(base, root / f"p-{kind}", configs[kind]) for kind in PEFT_KINDS}
    for name, config in OWN_KINDS.items():
        bottlenecks = trained(backbone.model, config)
        tensors = bottlenecks.tensors()
        found[name] = save_adapter(
            root / f"b-{name}", config, tensors, backbone=backbone.fingerprint
        )
    lora = LoraConfig(peft_type="LORA", r=2, lora_alpha=4.0, target_modules=["o_proj"])
    config = HybridConfig(lora=lora, bottleneck=OWN_KINDS["sequential"])
    tensors = trained(backbone.model, config.bottleneck).tensors()
    for layer in range(3):
        module = f"model.layers.{layer}.self_attn.o_proj"
        tensors[lora_key(module, "lora_A")] = torch.randn(2, 32) * 0.3
        tensors[lora_key(module, "lora_B")] = torch.randn(32, 2) * 0.3
    found["hybrid"] = save_adapter(
        root / "b-hybrid", config, tensors, backbone=backbone.fingerprint
    )
    for folder in found.values():
        head = tiny_choice_head(32, 3)
        save_file(head.state_dict(), folder / "head.safetensors", metadata={KIND: head.kind})
    return found


def trained(model: torch.nn.Module, config: BottleneckConfig) -> Bottlenecks:
    bottlenecks = Bottlenecks(model, config)
    torch.manual_seed(8)
    with torch.no_grad():
        for parameter in bottlenecks.parameters():
            parameter.normal_(std=0.3)
    return bottlenecks


@pytest.fixture(scope="module")
def engine(base: Path, folders: dict[str, Path]) -> Iterator[Engine]:
    with Engine(load_backbone(base), settings=Settings(max_batch=8)) as engine:
        for folder in folders.values():
            engine.load(load_skill(folder))
        yield engine


@contextmanager
def reference(kind: str, base: Path, folder: Path) -> Iterator[torch.nn.Module]:
    """The adapted model by PEFT, or with the very modules that training uses."""
    model = AutoModelForCausalLM.from_pretrained(base).eval()
    if kind in PEFT_KINDS:
        yield PeftModel.from_pretrained(model, folder).eval()
        return
    adapter = load_adapter(load_skill(folder))
    config = adapter.config
    bottlenecks = Bottlenecks(model, getattr(config, "bottleneck", config))
    bottlenecks.load_tensors(adapter.weights.tensors)
    for name, pair in adapter.pairs.items():
        weight = model.get_submodule(name).weight
        weight.data.copy_(adapted_weight(pair, weight.data))
    with bottlenecks.attached():
        yield model


def test_mixed_requests_from_many_threads_get_each_kinds_own_answer(
    engine: Engine, base: Path, folders: dict[str, Path]
) -> None:
    prompts = Prompts(engine.backbone)
    digests = {kind: load_skill(folder).digest for kind, folder in folders.items()}
    wanted = {}
    for kind, folder in folders.items():
        with reference(kind, base, folder) as model:
            for question in QUESTIONS:
                ids = greedy(model, list(prompts(question).ids), engine.backbone.eos_ids, TOKENS)
                text = engine.tokenizer.decode(ids)
                wanted[kind, question] = text.rstrip("\ufffd")  # half a character is kept back
    assert len(set(wanted.values())) > len(folders)

    def ask(kind: str, question: str) -> str | None:
        request = Request(
            prompts(question), adapter=digests[kind], generation=Generation(max_tokens=TOKENS)
        )
        return engine.submit(request).result(timeout=60).text

    order = list(wanted) * 3
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda key: ask(*key), order))
    wrong = {key for key, answer in zip(order, answers, strict=True) if answer != wanted[key]}
    assert not wrong


def test_a_task_head_reads_the_states_of_any_kind(engine: Engine, folders: dict[str, Path]) -> None:
    prompt = Prompts(engine.backbone)()
    readings = {}
    for kind, folder in folders.items():
        request = Request(prompt, adapter=load_skill(folder).digest, read=True)
        reading = engine.submit(request).result(timeout=60).reading
        assert reading is not None
        assert reading.choices is not None
        readings[kind] = tuple(reading.choices.tolist())
    assert len(set(readings.values())) == len(folders)


def test_kinds_say_what_they_are_and_cost(engine: Engine, folders: dict[str, Path]) -> None:
    for kind, folder in folders.items():
        loaded = engine.loaded[load_skill(folder).digest]
        assert loaded.kind == {"sequential": "bottleneck", "parallel": "bottleneck"}.get(kind, kind)
        assert loaded.starts_at_invocation == (kind == "activated")
        stored = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        assert 0.5 * stored < loaded.nbytes < 1.2 * stored


def test_a_prefix_takes_its_part_of_the_context(engine: Engine, folders: dict[str, Path]) -> None:
    digest = load_skill(folders["prefix"]).digest
    virtual = engine.loaded[digest].virtual_tokens
    assert virtual > 0
    room = engine.context - virtual

    def ask(length: int, **options: object) -> Completion:
        return done(engine, Request(plain_prompt((7,) * length), adapter=digest, **options))

    completion = ask(room - 3, generation=Generation(max_tokens=100))
    assert 0 < completion.usage.completion_tokens <= 3
    with pytest.raises(LimitError, match=f"fills the whole context of {room}"):
        ask(room)
    with pytest.raises(LimitError, match=f"context {room}, because the skill's prefix takes"):
        ask(room + 1)
    with pytest.raises(LimitError, match=f"the context {room}"):
        ask(room - 1, choices=("yes, it is", "no"))
    bare = Request(plain_prompt((7,) * (room + 1)), generation=Generation(max_tokens=1))
    assert done(engine, bare).usage.completion_tokens <= 1
