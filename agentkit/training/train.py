"""`train.yaml` to an adapter folder: PEFT places the adapter, transformers' Trainer trains it.

Only what is trained is checkpointed, so a training that was killed goes on where it was; what ends
up in the skill folder is PEFT's own format plus, for a task head, `head.safetensors`.
"""

from __future__ import annotations

import json
import resource
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from rich.console import Console
from rich.progress import Progress
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from agentkit import models
from agentkit.adapters.heads import KIND, ChoiceHead, Head, SpanLabelHead
from agentkit.errors import InputError, SkillError
from agentkit.prompt import frame_of
from agentkit.settings import Settings
from agentkit.skill.manifest import ChoiceAnswer, Manifest, MarksAnswer
from agentkit.skill.manifest_files import read_manifest
from agentkit.training.attention import use_block_attention
from agentkit.training.lower import LowerStates, layers_only
from agentkit.training.measure import measure_packs, shift_to_best_threshold
from agentkit.training.model import PackModel, trained_tensors
from agentkit.training.packs import Pack, Packer
from agentkit.training.record import write_record
from agentkit.training.rows import Split, load_rows
from agentkit.training.spec import TrainSpec, load_train_spec

_TRAINED = "trained.safetensors"


@dataclass(frozen=True, slots=True)
class Trained:
    """Where a training's results went, and what it measured on the tuning rows."""

    folder: Path
    metrics: dict[str, Any]


def train_skill(
    skill: Path,
    *,
    settings: Settings,
    data_dir: Path,
    work: Path | None = None,
    console: Console | None = None,
) -> Trained:
    """Train the adapter of a skill folder as its `train.yaml` says.

    `work` holds the lower layers' states and the checkpoints (by default under
    `settings.home/training/<name>`); a second call with the same `train.yaml` goes on from there.
    Raises `SkillError` or `InputError` for a folder or data that cannot be trained from.
    """
    console = console or Console(stderr=True)
    manifest, _ = read_manifest(skill)
    spec = load_train_spec(skill / "train.yaml")
    work = work or settings.home / "training" / manifest.name
    work.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    if settings.threads:
        torch.set_num_threads(settings.threads)
    set_seed(spec.seed)

    split = load_rows(spec, skill=skill, data_dir=data_dir)
    backbone = models.resolve(settings.backbone, settings, "backbone")
    tokenizer = AutoTokenizer.from_pretrained(backbone, local_files_only=True)
    packer = Packer(tokenizer, frame_of(tokenizer), manifest, spec.pack_tokens)
    train_packs = _thin(packer.pack(split.train), manifest, spec)
    tuning_packs = packer.pack(split.tuning)
    tuning_packs = tuning_packs[:: -(-len(tuning_packs) // spec.tuning_packs) or 1]
    if not train_packs:
        raise InputError("the training rows make no pack", where=str(skill / "train.yaml"))
    console.print(
        f"{manifest.name}: {len(split.train)} rows in {len(train_packs)} packs, "
        f"{sum(len(p.ids) for p in train_packs):,} tokens an epoch; "
        f"{len(split.tuning)} rows to tune on"
    )

    model: Any = AutoModelForCausalLM.from_pretrained(
        backbone,
        dtype=getattr(torch, spec.dtype),
        trust_remote_code=False,
        use_safetensors=True,
        local_files_only=True,
    )
    model.train(False)
    use_block_attention(model)
    decoder, hidden = model.model, int(model.config.hidden_size)
    adapted = spec.layer_range(int(model.config.num_hidden_layers))
    fingerprint = models.fingerprint(backbone)
    states = LowerStates(
        work / "lower-states.bin", hidden=hidden, key=f"{fingerprint}:{adapted.start}:{spec.dtype}"
    )
    with Progress(console=console) as progress:
        states.compute(decoder, [*train_packs, *tuning_packs], adapted.start, progress)

    peft_model = get_peft_model(model, _lora_config(spec, adapted))
    upper = range(adapted.start, int(model.config.num_hidden_layers))
    with layers_only(decoder, upper, final_norm=True):
        pack_model = PackModel(
            decoder, model.lm_head, _new_head(manifest, hidden), spec.evidence_weight
        )
        before = measure_packs(pack_model, tuning_packs, states, manifest)
        history = _fit(pack_model, train_packs, states, spec, work, console)
        pack_model.eval()
        shift_to_best_threshold(pack_model, tuning_packs, states, manifest)
        after = measure_packs(pack_model, tuning_packs, states, manifest)
    folder = _save(skill, peft_model, pack_model.head, fingerprint)
    metrics = _metrics(spec, split, settings, fingerprint, train_packs)
    metrics |= {
        "seconds": round(time.monotonic() - started, 1),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "tuning": {"untrained": before, "trained": after},
        "loss": history,
    }
    write_record(folder, manifest, metrics)
    return Trained(folder, metrics)


def _thin(packs: list[Pack], manifest: Manifest, spec: TrainSpec) -> list[Pack]:
    """For marks, the packs worth their time: those with rare labels first, the rest by lot.

    Most windows of a document hold no label or a common one; labels that few windows hold would
    hardly be learnt from a plain sample of the same size.
    """
    if not isinstance(manifest.answer, MarksAnswer) or spec.max_packs is None:
        return packs
    held = [
        {("s", at) for _, at in p.span_labels} | {("t", at) for _, at in p.token_labels}
        for p in packs
    ]
    counts = Counter(label for labels in held for label in labels)
    order = list(range(len(packs)))
    Random(spec.seed).shuffle(order)
    rare = sorted(order, key=lambda i: min((counts[label] for label in held[i]), default=1 << 30))
    kept = rare[: spec.max_packs * 3 // 4]
    chosen = set(kept)
    kept += [i for i in order if i not in chosen][: spec.max_packs - len(kept)]
    return [packs[i] for i in sorted(kept)]


def _lora_config(spec: TrainSpec, adapted: range) -> LoraConfig:
    return LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,
        lora_dropout=spec.dropout,
        target_modules=list(spec.modules),
        layers_to_transform=list(adapted),
        layers_pattern="layers",
        task_type="CAUSAL_LM",
    )


def _new_head(manifest: Manifest, hidden: int) -> Head | None:
    answer = manifest.answer
    if isinstance(answer, ChoiceAnswer) and answer.scoring == "head":
        return ChoiceHead(hidden, len(answer.choices))
    if isinstance(answer, MarksAnswer):
        units = [label.unit for label in answer.labels]
        return SpanLabelHead(hidden, units.count("sentence"), units.count("token"))
    return None


# ---------------------------------------------------------------- fitting


class _Packs(torch.utils.data.Dataset[dict[str, Any]]):
    def __init__(self, packs: Sequence[Pack], states: LowerStates) -> None:
        self._packs, self._states = packs, states

    def __len__(self) -> int:
        return len(self._packs)

    def __getitem__(self, at: int) -> dict[str, Any]:
        pack = self._packs[at]
        return {"pack": pack, "lower": self._states.get(pack)}


class _PackTrainer(Trainer):
    """Trainer whose checkpoints hold the trained tensors only, not the frozen backbone's."""

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        save_file(
            {name: t.contiguous() for name, t in trained_tensors(self.model).items()},
            folder / _TRAINED,
        )

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        saved = load_file(Path(resume_from_checkpoint) / _TRAINED)
        with torch.no_grad():
            for name, parameter in trained_tensors(self.model).items():
                parameter.copy_(saved[name])


class _Clock(TrainerCallback):
    """Ends training when its minutes are over."""

    def __init__(self, minutes: float) -> None:
        self._end = time.monotonic() + 60 * minutes

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> TrainerControl:
        if time.monotonic() > self._end:
            control.should_training_stop = True
        return control


class _Report(TrainerCallback):
    """Shows the loss as it falls."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs and "loss" in logs:
            self._console.print(
                f"step {state.global_step}/{state.max_steps}  "
                f"loss {float(logs['loss']):.4f}  rate {float(logs['learning_rate']):.2e}"
            )


def _fit(
    model: PackModel,
    packs: Sequence[Pack],
    states: LowerStates,
    spec: TrainSpec,
    work: Path,
    console: Console,
) -> list[dict[str, float]]:
    head = set(model.head.parameters()) if model.head is not None else set()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in trained if p not in head], "lr": spec.learning_rate},
            {"params": list(head), "lr": spec.head_learning_rate},
        ],
        weight_decay=0.01,
    )
    steps = max(1, round(spec.epochs * len(packs) / spec.packs_per_step))
    warm = max(1, steps // 20)
    began = time.monotonic()

    def rate(step: int) -> float:
        """Up, then down to nothing when the steps or the minutes are used up."""
        done = step / steps
        if spec.max_minutes is not None:
            done = max(done, (time.monotonic() - began) / (60 * spec.max_minutes))
        return min((step + 1) / warm, max(0.0, 1.0 - done))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    checkpoints = work / "checkpoints"
    callbacks: list[TrainerCallback] = [_Report(console)]
    if spec.max_minutes is not None:
        callbacks.append(_Clock(spec.max_minutes))
    trainer = _PackTrainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(checkpoints),
            per_device_train_batch_size=1,
            gradient_accumulation_steps=spec.packs_per_step,
            max_steps=steps,
            max_grad_norm=1.0,
            save_steps=25,
            save_total_limit=2,
            logging_steps=10,
            report_to="none",
            remove_unused_columns=False,
            disable_tqdm=True,
            dataloader_pin_memory=False,
            use_cpu=True,
            seed=spec.seed,
            data_seed=spec.seed,
        ),
        train_dataset=_Packs(packs, states),
        data_collator=lambda items: items[0],
        optimizers=(optimizer, schedule),
        callbacks=callbacks,
    )
    trainer.remove_callback(_printer())
    resume = any(checkpoints.glob("checkpoint-*"))
    trainer.train(resume_from_checkpoint=resume or None)
    history = [
        {"step": entry["step"], "loss": round(float(entry["loss"]), 5)}
        for entry in trainer.state.log_history
        if "loss" in entry
    ]
    shutil.rmtree(checkpoints, ignore_errors=True)
    return history


def _printer() -> type[TrainerCallback]:
    from transformers.trainer_callback import PrinterCallback

    return PrinterCallback


# ---------------------------------------------------------------- results


def _save(skill: Path, model: PeftModel, head: Head | None, fingerprint: str) -> Path:
    """Write adapter and head into the skill folder, each file whole or not at all."""
    fresh = skill / ".fresh"
    model.save_pretrained(str(fresh), safe_serialization=True)
    weights = fresh / "adapter_model.safetensors"
    # bfloat16 halves what is stored; the adapter was trained against a bfloat16 backbone.
    tensors = {name: t.to(torch.bfloat16).contiguous() for name, t in load_file(weights).items()}
    metadata = {"format": "pt", "agentkit.backbone": fingerprint}
    save_file(tensors, weights, metadata=metadata)
    config = fresh / "adapter_config.json"
    content = json.loads(config.read_text(encoding="utf-8"))
    # A path of the machine that trained says nothing elsewhere; the fingerprint says which.
    content["base_model_name_or_path"] = None
    content["inference_mode"] = True
    config.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    if head is not None:
        state = {name: t.contiguous() for name, t in head.state_dict().items()}
        save_file(state, fresh / "head.safetensors", metadata={"format": "pt", KIND: head.kind})
    for file in ("adapter_config.json", "head.safetensors", "adapter_model.safetensors"):
        if (fresh / file).exists():
            (fresh / file).replace(skill / file)
    shutil.rmtree(fresh)
    return skill


def _metrics(
    spec: TrainSpec, split: Split, settings: Settings, fingerprint: str, packs: Sequence[Pack]
) -> dict[str, Any]:
    import peft
    import transformers

    return {
        "backbone": {"name": settings.backbone, "fingerprint": fingerprint},
        "training": spec.model_dump(mode="json", exclude={"data"}),
        "data": list(split.sources),
        "packs": len(packs),
        "tokens_per_epoch": sum(len(p.ids) for p in packs),
        "versions": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "peft": peft.__version__,
        },
    }


def check_trainable(skill: Path) -> TrainSpec:
    """The `train.yaml` of a folder that could be trained; raises `SkillError` otherwise."""
    manifest, _ = read_manifest(skill)
    if manifest.name != skill.resolve().name:
        raise SkillError("the name differs from the folder's", where=str(skill / "SKILL.md"))
    return load_train_spec(skill / "train.yaml")
