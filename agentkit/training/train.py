"""`train.yaml` to an adapter folder: PEFT places the adapter, transformers' Trainer trains it.

Only what is trained is checkpointed, so a training that was killed goes on where it was; what ends
up in the skill folder is PEFT's own format plus, for a task head, `head.safetensors`.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, TypeGuard

import torch
from rich.console import Console
from rich.progress import Progress
from safetensors.torch import save
from transformers import AutoTokenizer, set_seed

from agentkit import models
from agentkit.adapters.head_labels import labels_metadata
from agentkit.adapters.heads import KIND, ChoiceHead, Head, LinearProbe, SpanLabelHead
from agentkit.adapters.tensor_file import BACKBONE_KEY
from agentkit.errors import InputError
from agentkit.prompt import frame_of
from agentkit.settings import Settings
from agentkit.skill.manifest import Manifest, MarksAnswer
from agentkit.skill.manifest_files import read_manifest
from agentkit.training.backbone import decoder_of, load_frozen, with_type
from agentkit.training.checks import (
    check_choices,
    check_depth,
    check_enough,
    check_lengths,
    check_probe,
    check_rows,
    check_settings,
    device_of,
    few_to_tune_on,
    longer_than_served,
)
from agentkit.training.fitting import checkpoint_key, fit
from agentkit.training.frozen import beside_frozen, frozen_figures
from agentkit.training.layer_selection import LayerChoice
from agentkit.training.linear_probe import fit_probe, token_words
from agentkit.training.lower import LowerStates, layers_only, recomputed
from agentkit.training.measure import calibrate, measure_packs
from agentkit.training.meter import Meter, Spent, begin_gpu, gpu_memory
from agentkit.training.methods import Attached, attach
from agentkit.training.model import PackModel, trained_tensors
from agentkit.training.packs import Pack, Packer
from agentkit.training.record import facts_of, write_record
from agentkit.training.rows import calibration_rows, load_rows
from agentkit.training.settle import settle
from agentkit.training.several import trained_by
from agentkit.training.spec import TrainSpec, load_train_spec
from agentkit.training.stages import started_from, weights_digest
from agentkit.training.start import Start, check_start, read_start
from agentkit.training.workplace import alone_in

_CHECKPOINTS = 1_000_000_000
"""Bytes of the disk that are left to checkpoints, whatever the lower layers' states would take."""


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
    paths_from: Path | None = None,
) -> Trained:
    """Train the adapter of a skill folder as its `train.yaml` says.

    `work` holds the lower layers' states and the checkpoints (by default under
    `settings.home/training/<name>`); a second call with the same `train.yaml` goes on from there.
    Relative paths in `train.yaml` count from `paths_from` (by default the folder; for a copy, the
    folder that it was made of).
    Raises `SkillError` or `InputError` for a folder or data that cannot be trained from.
    """
    console = console or Console(stderr=True)
    manifest, _ = read_manifest(skill)
    spec = load_train_spec(skill / "train.yaml")
    work = work or settings.home / "training" / manifest.name
    if settings.threads:
        torch.set_num_threads(settings.threads)
    set_seed(spec.seed)
    origin = paths_from or skill
    of = hashlib.sha256(f"{settings.backbone}\n{trained_by(skill, origin)}".encode()).hexdigest()
    noted = work / f"spent-{of[:16]}.json"
    with alone_in(work), Meter() as meter, Spent(noted, meter) as spent:
        return _train(skill, origin, manifest, spec, settings, data_dir, work, console, spent)


def _train(
    skill: Path,
    origin: Path,
    manifest: Manifest,
    spec: TrainSpec,
    settings: Settings,
    data_dir: Path,
    work: Path,
    console: Console,
    spent: Spent,
) -> Trained:
    backbone = models.resolve(settings.backbone, settings, "backbone")
    start_at: Path | None = None
    if spec.start_from:
        start_at = started_from(spec.start_from, origin, skill, models.fingerprint(backbone))
    check_settings(spec, manifest, backbone, skill, start_at)

    def said_of(source: str) -> None:
        console.print(f"{manifest.name}: {source}", markup=False)

    where = {"skill": origin, "data_dir": data_dir}
    document = manifest.retrieval.document
    split = load_rows(spec, **where, document=document, said=said_of)
    # Read and counted now, not after hours.
    new, _ = calibration_rows(spec, **where, document=document, said=said_of)
    if longer := check_rows(manifest, (*split.train, *split.tuning, *new)):
        console.print(
            f"{manifest.name}: rows that expect a longer text than skill.yaml lets it write: "
            f"{len(longer)}, the first of {longer[0].place}"
        )
    if spec.calibration:
        check_enough(len(split.tuning) + len(new), str(skill / "train.yaml"))
    tokenizer = AutoTokenizer.from_pretrained(backbone, local_files_only=True)
    packer = Packer(tokenizer, frame_of(tokenizer), manifest, spec.pack_tokens)
    train_packs = _thin(packer.pack(split.train), manifest, spec)
    tuning_packs = packer.pack(split.tuning)
    tuning_packs = tuning_packs[:: -(-len(tuning_packs) // spec.tuning_packs) or 1]
    if not train_packs:
        raise InputError("the training rows make no pack", where=str(skill / "train.yaml"))
    check_choices(manifest, train_packs, skill)
    console.print(
        f"{manifest.name}: {len(split.train)} rows in {len(train_packs)} packs, "
        f"{sum(len(p.ids) for p in train_packs):,} tokens an epoch; "
        f"{len(split.tuning)} rows to tune on"
    )
    if said := few_to_tune_on(manifest, len(split.tuning)):
        console.print(f"{manifest.name}: {said}")

    if said := longer_than_served(manifest, train_packs, settings.document_window):
        console.print(f"{manifest.name}: {said}")

    device = device_of(settings.device)
    spec = with_type(spec, device)
    begin_gpu(device)
    model = load_frozen(backbone, spec, device)
    decoder, hidden = decoder_of(model), int(model.config.hidden_size)
    count = int(model.config.num_hidden_layers)
    positions = getattr(model.config, "max_position_embeddings", None)
    check_lengths(train_packs, split.train, positions)
    check_lengths(tuning_packs, split.tuning, positions)
    head = _new_head(manifest, hidden)
    if head is not None and not isinstance(head, LinearProbe):
        head.to(device)
    if isinstance(head, LinearProbe):
        check_probe(spec, count, skill)
    fingerprint = models.fingerprint(backbone)
    begun = ""
    if start_at:
        check_start(start_at, fingerprint)
        begun = weights_digest(start_at)
    spec, choice, found = settle(
        spec,
        model,
        train_packs,
        head,
        backbone=fingerprint,
        skill=skill,
        origin=origin,
        work=work,
        console=console,
    )
    if spec.method == "head" and isinstance(head, ChoiceHead):
        # A pack whose inputs all give the choice teaches it nothing.
        train_packs = [pack for pack in train_packs if pack.answer_at]
    lowest = _lowest(spec, choice, count)
    if isinstance(head, LinearProbe):
        check_depth(lowest, count, skill)
        head.layer.fill_(lowest)
    states = LowerStates(
        work / "lower-states.bin",
        hidden=hidden,
        dtype=getattr(torch, spec.dtype),
        limit=round(spec.cache_gigabytes * 1e9),
        spared=_CHECKPOINTS,
        key=lambda layer: ":".join(
            filter(None, (fingerprint, str(layer), spec.dtype, spec.quantization))
        ),
    )
    found_before = spent.found(states.found([*train_packs, *tuning_packs], lowest))
    frozen: dict[str, Any] = {}
    compared = 0.0
    if spec.frozen_baseline and spec.method != "head":
        if tuning_packs and _trains_head(head):
            frozen, compared = frozen_figures(
                model,
                decoder,
                head,
                train_packs,
                tuning_packs,
                states,
                spec,
                manifest,
                lowest=lowest,
                backbone=fingerprint,
                work=work,
                console=console,
                device=device,
            )
        else:
            console.print(
                f"{manifest.name}: frozen_baseline left out: it wants a task head that is trained, "
                "and rows to tune on"
            )
    set_seed(spec.seed)  # whatever was probed, the training is the same
    attached = attach(model, spec, choice.chosen, _invocation(tokenizer))
    start: Start | None = None
    if start_at:  # read while all layers are there, which its weights are named by
        # A probe is fitted anew, so that an adapter will do that has none.
        taught = None if isinstance(head, LinearProbe) else head
        start = read_start(attached, taught, start_at)
        console.print(f"{manifest.name}: {start.said}")
    checkpoints = (
        work
        / "checkpoints"
        / checkpoint_key(spec, train_packs, f"{fingerprint}:{choice.chosen}{begun}", head)
    )
    with Progress(console=console) as progress:
        states.compute(decoder, [*train_packs, *tuning_packs], lowest, progress)
    if spec.quantization != "nf4":  # its parameters cannot be emptied
        states.release([*train_packs, *tuning_packs])

    with layers_only(decoder, range(lowest, count), final_norm=True):
        pack_model = PackModel(decoder, model.lm_head, head, spec.evidence_weight, attached)
        if isinstance(head, LinearProbe):  # what it chooses is the bare backbone's choice
            with Progress(console=console) as progress:
                words = token_words(tokenizer)
                fit_probe(head, train_packs, states, words, split.train, progress)
        with attached.disabled() if attached.acts_untrained else nullcontext():
            untrained = measure_packs(pack_model, tuning_packs, states, manifest)
    figures = {"untrained": untrained} | ({"frozen": frozen} if frozen else {})
    if start is not None:  # where all layers are, as when it was read
        start.give(attached, None if isinstance(head, LinearProbe) else head)
    with layers_only(decoder, range(lowest, count), final_norm=True):
        if start is not None:
            figures["start"] = measure_packs(pack_model, tuning_packs, states, manifest)
        history: list[dict[str, float]] = []
        if trained_tensors(pack_model):  # a probe alone takes no steps
            with recomputed(decoder) if spec.checkpointing else nullcontext():
                history = fit(
                    pack_model,
                    train_packs,
                    states,
                    spec,
                    checkpoints=checkpoints,
                    console=console,
                    device=device,
                )
        pack_model.eval()
        calibrate(pack_model, tuning_packs, states)
        figures["trained"] = measure_packs(pack_model, tuning_packs, states, manifest)
    if said := beside_frozen(figures):
        console.print(f"{manifest.name}: {said}")
    dtype = getattr(torch, spec.dtype)
    folder = _save(skill, manifest, attached, pack_model.head, fingerprint, dtype)
    metrics = facts_of(spec, split, settings, fingerprint, train_packs)
    metrics |= {
        "seconds": round(spent.seconds, 1),
        **({"frozen_seconds": compared} if frozen else {}),
        "lower_states_found": round(found_before, 4),
        "threads": torch.get_num_threads(),
        "device": device.type,
        "layers": choice.to_json(),
        **found,
        "peak_memory_bytes": spent.peak_memory,
        **gpu_memory(device),
        **({"start_sha256": begun} if begun else {}),
        "tuning": figures,
        "loss": history,
    }
    write_record(folder, manifest, metrics)
    shutil.rmtree(checkpoints, ignore_errors=True)  # not before all that it led to is written
    with suppress(OSError):  # other settings of the skill may have theirs
        checkpoints.parent.rmdir()
    return Trained(folder, metrics)


def _trains_head(head: Head | None) -> TypeGuard[ChoiceHead | SpanLabelHead]:
    """Whether steps teach it; a probe is fitted to the frozen backbone as it is."""
    return head is not None and not isinstance(head, LinearProbe)


def _lowest(spec: TrainSpec, choice: LayerChoice, count: int) -> int:
    """The layer from which on states change while training; those below are computed once."""
    # A prefix acts on every layer whatever is chosen; from 0 on nothing but embeddings is kept.
    if not spec.cache_lower or spec.method == "prefix":
        return 0
    return choice.chosen[0] if choice.chosen else count


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


def _invocation(tokenizer: Any) -> list[int]:
    ids = tokenizer(frame_of(tokenizer).invocation, add_special_tokens=False)["input_ids"]
    return list(ids)


def _new_head(manifest: Manifest, hidden: int) -> Head | None:
    answer = manifest.answer
    if manifest.head_choices:
        kind = LinearProbe if manifest.probes else ChoiceHead
        return kind(hidden, len(manifest.head_choices))
    if isinstance(answer, MarksAnswer):
        units = [label.unit for label in answer.labels]
        return SpanLabelHead(hidden, units.count("sentence"), units.count("token"))
    return None


# ---------------------------------------------------------------- results


def _save(
    skill: Path,
    manifest: Manifest,
    attached: Attached,
    head: Head | None,
    fingerprint: str,
    dtype: torch.dtype,
) -> Path:
    """Write adapter and head into the skill folder, each file whole or not at all.

    A head that was trained alone names its backbone. What an earlier training left, and this one
    has not, goes: an adapter is not what a head alone was trained with.
    """
    fresh = skill / ".fresh"
    shutil.rmtree(fresh, ignore_errors=True)  # of a training that was killed here
    fresh.mkdir()
    # In the type of the backbone that it was trained against: bfloat16 halves what is stored.
    tensors = {name: t.detach().to(dtype).contiguous() for name, t in attached.tensors().items()}
    named = {"format": "pt", BACKBONE_KEY: fingerprint}
    # Written by us: `save_file` leaves files that nobody but their owner may read.
    if tensors:
        (fresh / "adapter_model.safetensors").write_bytes(save(tensors, metadata=named))
        config = json.dumps(attached.config(), indent=2, sort_keys=True)
        (fresh / "adapter_config.json").write_text(config + "\n", encoding="utf-8")
    if head is not None:
        state = {name: t.contiguous() for name, t in head.state_dict().items()}
        metadata = {"format": "pt"} if tensors else named
        metadata |= {KIND: head.kind} | labels_metadata(manifest)
        (fresh / "head.safetensors").write_bytes(save(state, metadata))
    for file in ("adapter_config.json", "head.safetensors", "adapter_model.safetensors"):
        if (fresh / file).exists():
            (fresh / file).replace(skill / file)
        elif not tensors or file == "head.safetensors":
            (skill / file).unlink(missing_ok=True)
    shutil.rmtree(fresh)
    return skill
