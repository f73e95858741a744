"""What a training cannot do, said before time is spent on it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import torch
from transformers import AutoConfig

from agentkit.errors import InputError, SkillError
from agentkit.output import problem_with
from agentkit.skill.figures import written_fields
from agentkit.skill.manifest import ChoiceAnswer, GenerateAnswer, Manifest, MarksAnswer
from agentkit.training.backbone import check_four_bits
from agentkit.training.layer_selection import given_layers
from agentkit.training.methods import check_prefix_layers
from agentkit.training.packs import Pack
from agentkit.training.rows import Row
from agentkit.training.search import check_optuna, check_space
from agentkit.training.spec import TrainSpec
from agentkit.types import Json


def device_of(name: str) -> torch.device:
    """The device of that name. Raises `InputError` for one that cannot be trained on here."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"there is no such device: {error}", where="device") from error
    if device.type == "cpu":
        return device
    if device.type != "cuda" or not torch.cuda.is_available():
        raise InputError(f"cannot train on {name!r} here", where="device", hint="device=cpu")
    if device.index:
        raise InputError(
            f"a training takes the first GPU that it sees, not {name!r}",
            where="device",
            hint=f"CUDA_VISIBLE_DEVICES={device.index}, and device=cuda",
        )
    return torch.device("cuda", 0)


def check_settings(
    spec: TrainSpec, manifest: Manifest, backbone: Path, skill: Path, start: Path | None
) -> None:
    """Raises `SkillError` for what a `train.yaml` asks in vain, before a row is read.

    `backbone` is its folder, whose configuration says how many layers there are; `start` is the
    folder that the training starts from, if any.
    """
    where = str(skill / "train.yaml")
    methods = {spec.method, *(spec.search.method if spec.search else ())}
    if "alora" in methods and isinstance(manifest.answer, MarksAnswer):
        raise SkillError(
            "an activated adapter acts after the document, so it cannot learn to label it",
            where=where,
            hint="use lora on the upper layers",
        )
    if spec.calibration:
        check_calibrated(manifest, where)
    if start:
        _check_start(spec, start, where)
    if spec.quantization == "nf4":
        check_four_bits()
    if spec.search is not None:
        check_optuna()
    config: Any = AutoConfig.from_pretrained(
        backbone, local_files_only=True, trust_remote_code=False
    )
    count = getattr(config.get_text_config(decoder=True), "num_hidden_layers", None)
    if count is None:
        return
    if spec.search is not None:
        answered = isinstance(manifest.answer, MarksAnswer) or bool(manifest.head_choices)
        check_space(spec.search, count, head=answered)
    if spec.method == "prefix" and spec.search is None and spec.layers.strip() == "auto":
        check_prefix_layers((), count)
    if spec.layers_of or spec.layers.strip() == "auto":
        return
    if spec.method == "prefix" and spec.search is None:
        check_prefix_layers(given_layers(spec.layers, count), count)
    elif spec.method != "head":
        given_layers(spec.layers, count)


def _check_start(spec: TrainSpec, start: Path, where: str) -> None:
    """An adapter to start from has its method and size: another would not fit."""
    if not (start / "adapter_model.safetensors").is_file():
        return
    if found := spec.finds_size:
        raise SkillError(
            f"an adapter to start from has its method and size: {found} would find another",
            where=where,
            hint="take it out (in `search`, `rank: []`), or start from a head trained alone",
        )


def check_calibrated(manifest: Manifest, where: str) -> ChoiceAnswer:
    """The answer that can be calibrated. Raises `SkillError` where no head makes a choice."""
    answer = manifest.answer
    if isinstance(answer, ChoiceAnswer) and answer.scoring == "head":
        return answer
    raise SkillError(
        "only an answer that is a choice that a task head makes is calibrated like this",
        where=where,
        hint="other answers are calibrated on the tuning rows, while they are trained",
    )


LEAST = 50
"""Rows from which on there is something to calibrate on."""


def check_enough(count: int, where: str) -> None:
    """Raises `InputError` where rows to calibrate on are too few."""
    if count < LEAST:
        raise InputError(
            f"{count} rows are too few to calibrate on",
            where=where,
            hint=f"give {LEAST} or more: a larger share of the training's (`tuning: 0.2`), more "
            "under `calibration`, or of a trained skill `agentkit calibrate --data`",
        )


_LENGTHS = ("maxLength",)
"""Limits of what is served. A text beyond them can be learnt from, as far as it goes."""


def check_rows(manifest: Manifest, rows: Iterable[Row]) -> list[Row]:
    """Raises `InputError`, with its place, for the first row that a skill cannot learn from.

    Its input has to meet the input schema, and what is expected the output schema: a misspelt
    field or label would be learnt, or passed over, without a word. Returns the rows that expect a
    longer text than the output schema lets the skill write.
    """
    longer = []
    for row in rows:
        if problem := _problem_of(manifest, row):
            raise InputError(
                problem,
                where=row.place or "a training row",
                hint="skill.yaml says what the skill takes and gives",
            )
        if isinstance(manifest.answer, GenerateAnswer) and _problem_of_text(manifest, row, ()):
            longer.append(row)
    return longer


def check_inputs(manifest: Manifest, rows: Iterable[Row]) -> None:
    """Raises `InputError`, with its place, for the first row that the skill is not asked by."""
    for row in rows:
        if problem := problem_with(manifest.input, row.input):
            raise InputError(
                f"the input does not fit: {problem}",
                where=row.place or "a row",
                hint="skill.yaml says what the skill takes",
            )


def problem_of_gold(manifest: Manifest, row: Row) -> str | None:
    """What is wrong with what a row says is right, of the parts that it says.

    Its input is not looked at further than what is said of it: a row that the skill cannot be
    asked by fails when it is asked.
    """
    answer = manifest.answer
    if isinstance(answer, GenerateAnswer):
        labels, _ = written_fields(manifest.output)
        for name, values in labels.items():
            whole = row.expected if isinstance(row.expected, Mapping) else {"": row.expected}
            said = whole.get(name)
            if said is not None and said not in values:
                known = ", ".join(map(str, values))
                return f"{name or 'what is expected'} is {said!r}, not one of {known}"
        return None
    if isinstance(answer, ChoiceAnswer) and row.expected.get(answer.field) not in answer.choices:
        return _no_choice(row, answer)
    # Of a document that is named by its digest, or is not there, only the order can be told.
    text = _document_of(manifest, row)
    return next(_misplaced(row, answer, None if text is None else len(text)), None)


def _document_of(manifest: Manifest, row: Row) -> str | None:
    field = manifest.retrieval.document
    text = row.input.get(field) if field and isinstance(row.input, Mapping) else None
    return text if isinstance(text, str) else None


def _no_choice(row: Row, answer: ChoiceAnswer) -> str:
    said = row.expected.get(answer.field)
    return f"{answer.field} is {said!r}, not one of {', '.join(answer.choices)}"


def _problem_of(manifest: Manifest, row: Row) -> str | None:
    if problem := problem_with(manifest.input, row.input):
        return f"the input does not fit: {problem}"
    if row.expected is None:
        return "it says not what is `expected`"
    answer = manifest.answer
    if isinstance(answer, GenerateAnswer):
        problem = _problem_of_text(manifest, row, _LENGTHS)
        return f"what is expected does not fit: {problem}" if problem else None
    if not isinstance(row.expected, Mapping):
        wanted = [answer.field] if isinstance(answer, ChoiceAnswer) else list(answer.fields)
        return f"what is expected is no object with {', '.join(wanted)}"
    named = {*manifest.output.get("properties", row.expected), *_stretch_fields(answer)}
    named |= {answer.field} if isinstance(answer, ChoiceAnswer) else set()
    if unknown := [name for name in row.expected if name not in named]:
        return f"what is expected has {unknown[0]!r}, which the output has not"
    if isinstance(answer, ChoiceAnswer) and row.expected.get(answer.field) not in answer.choices:
        return _no_choice(row, answer)
    return next(_misplaced(row, answer, len(_document_of(manifest, row) or "")), None)


def _problem_of_text(manifest: Manifest, row: Row, passed_over: Sequence[str]) -> str | None:
    chosen = isinstance(manifest.answer, GenerateAnswer) and manifest.answer.choice_field
    scored = chosen and "score" in manifest.output.get("properties", {})
    expected = _scored(row.expected) if scored else row.expected
    return problem_with(manifest.output, expected, passed_over=passed_over)


def _scored(expected: Json) -> Json:
    """With a probability, which is known and not learnt."""
    return {"score": 1.0, **expected} if isinstance(expected, Mapping) else expected


def _stretch_fields(answer: ChoiceAnswer | MarksAnswer) -> list[str]:
    """The fields that list stretches of the document."""
    if isinstance(answer, MarksAnswer):
        return list(answer.fields)
    return [answer.evidence_field] if answer.evidence_field else []


def _misplaced(row: Row, answer: ChoiceAnswer | MarksAnswer, length: int | None) -> Iterator[str]:
    """What is wrong with the stretches of the document that a row names; None is any length."""
    for name in _stretch_fields(answer):
        stretches = row.expected.get(name) or []
        if not isinstance(stretches, list):
            yield f"{name} is no list of stretches of the document"
            return
        for number, one in enumerate(stretches):
            if problem := _problem_with_stretch(one, length):
                yield f"{name}/{number}: {problem}"
            elif isinstance(answer, MarksAnswer):
                label, known = one.get(answer.fields[name].label_key), _labels(answer, name)
                if label not in known:
                    yield f"{name}/{number}: {label!r} is not one of {', '.join(known)}"


def _labels(answer: MarksAnswer, field: str) -> tuple[str, ...]:
    return answer.fields[field].labels or tuple(label.name for label in answer.labels)


def _problem_with_stretch(stretch: Any, length: int | None) -> str | None:
    if not isinstance(stretch, Mapping):
        return 'a stretch is {"start": ..., "end": ...}'
    start, end = stretch.get("start"), stretch.get("end")
    if not _whole(start) or not _whole(end):
        return "start and end are numbers of characters"
    if not 0 <= start < end or (length is not None and end > length):
        long = "" if length is None else f" of {length} characters"
        return f"{start} to {end} is no stretch of a document{long}"
    return None


def _whole(number: Any) -> TypeGuard[float]:
    """Whether it counts characters: some writers of JSON give every number a decimal point."""
    return type(number) is int or (isinstance(number, float) and number.is_integer())


_FEW_TO_TUNE_ON = 20
"""Fewer questions hardly say anything of a threshold: one is worth more than five points."""


def few_to_tune_on(manifest: Manifest, rows: int) -> str | None:
    """What is to be told where so few answers are tuned on that they say little."""
    if not rows:
        return (
            "no rows to tune on: no figures will be measured, and thresholds stay as they are; "
            "raise `tuning`, or give rows of more documents"
        )
    asked = isinstance(manifest.answer, ChoiceAnswer) or bool(manifest.head_choices)
    if not asked or rows >= _FEW_TO_TUNE_ON:
        return None
    return (
        f"{rows} rows to tune on are few: thresholds, calibration and the figures printed rest on "
        "them; raise `tuning`, or measure on other rows with agentkit eval"
    )


def check_lengths(packs: Sequence[Pack], rows: Sequence[Row], positions: int | None) -> None:
    """Raises `InputError` for the first row whose prompt and answer pass the backbone's positions.

    `rows` are those that the packs are made of; None means positions without an end.
    """
    if positions is None:
        return
    for pack in packs:
        if (longest := max(pack.positions) + 1) > positions:
            place = max(range(len(pack.positions)), key=pack.positions.__getitem__)
            at = pack.rows[max(0, pack.branch[place] - 1)]
            raise InputError(
                f"it takes {longest} tokens, and the backbone reads {positions}",
                where=rows[at].place or f"row {at}",
                hint="cut the document to what the skill is to read of it",
            )


def longer_than_served(manifest: Manifest, packs: Sequence[Pack], window: int) -> str | None:
    """What is to be told where documents are learnt from whole and answered from excerpts.

    `window` is `settings.document_window`.
    """
    answer, retrieval = manifest.answer, manifest.retrieval
    in_windows = isinstance(answer, MarksAnswer) or (
        isinstance(answer, ChoiceAnswer) and answer.scoring == "head"
    )
    if in_windows or not retrieval.document or retrieval.mode in ("whole", "none"):
        return None
    window = retrieval.window or window
    documents = [p for p in packs if p.token_at and p.span_ends[-1] - p.token_at[0] > window]
    longer = len({row for pack in documents for row in pack.rows})
    if not longer:
        return None
    return (
        f"{longer} rows have documents of more than {window} tokens: they are learnt from whole, "
        "and when they are served just a part is shown; cut them, or set retrieval.mode: whole"
    )


def check_choices(manifest: Manifest, packs: Sequence[Pack], skill: Path) -> None:
    """Raises `InputError` where a head has no choice to learn: every input gives it already."""
    if manifest.head_choices and not any(pack.answer_at for pack in packs):
        raise InputError(
            "the input of every training row gives the choice that the head is to make",
            where=str(skill / "train.yaml"),
            hint="add rows whose input leaves it open, or take out answer.choice_given",
        )


def check_probe(spec: TrainSpec, count: int, skill: Path) -> None:
    """Raises `SkillError` for settings that leave a probe nothing to read, before time is spent."""
    where = str(skill / "train.yaml")
    methods = {spec.method, *(spec.search.method if spec.search else ())}
    if "prefix" in methods:
        raise SkillError(
            "a probe reads the states below the adapter, and a prefix acts on every layer",
            where=where,
            hint="take another method, or answer.choice_by: head",
        )
    if spec.search and "head" in methods:
        raise SkillError(
            "a probe takes no steps that a search could compare",
            where=where,
            hint="take head out of search.method",
        )
    if not spec.cache_lower:
        raise SkillError(
            "a probe is fitted to the lower layers' cached states",
            where=where,
            hint="set cache_lower: true, or answer.choice_by: head",
        )
    for layers in spec.search.layers if spec.search else ():
        check_depth(given_layers(layers, count)[0], count, skill)
    searched = spec.search is not None and bool(spec.search.layers)
    if not (spec.method == "head" or spec.layers == "auto" or searched or spec.layers_of):
        check_depth(given_layers(spec.layers, count)[0], count, skill)


def check_depth(lowest: int, count: int, skill: Path) -> None:
    """Raises `SkillError` where too few layers are below an adapter to have understood anything."""
    if lowest < count // 3:
        raise SkillError(
            f"a probe reads the states below the adapter, which starts at layer {lowest}",
            where=str(skill / "train.yaml"),
            hint="set layers: upper 1/3, or answer.choice_by: head",
        )
