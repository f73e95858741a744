"""Sources named in `train.yaml` to rows, split by document into training and tuning."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from jinja2 import StrictUndefined, TemplateError, Undefined
from jinja2.environment import TemplateExpression
from jinja2.sandbox import ImmutableSandboxedEnvironment

from agentkit.errors import InputError
from agentkit.skill.negation import negated
from agentkit.training.datasets import LICENSES, dataset_files, load_dataset
from agentkit.training.jsonl import numbered_jsonl
from agentkit.training.spec import DataSpec, NegationSpec, TrainSpec
from agentkit.types import Json

_FILES = ("variants", "statements", "rules", "patterns", "words", "topics")
"""Options that name a file of the skill folder."""
_jinja = ImmutableSandboxedEnvironment(undefined=StrictUndefined)


@dataclass(frozen=True, slots=True)
class Row:
    """What a skill is given and what it should give; rows of one `group` are split together."""

    input: Json
    expected: Json
    group: str
    place: str = ""
    """Where it stands, for whoever has to mend it: a file and a line, or a data set."""


@dataclass(frozen=True, slots=True)
class Split:
    """Rows to train on, to tune on and to measure on, and where they came from."""

    train: tuple[Row, ...]
    tuning: tuple[Row, ...]
    holdout: tuple[Row, ...]
    sources: tuple[dict[str, Any], ...]
    """Per source its name, licence, digest (SHA-256 over its files), options, digests of the
    skill's own files that they name, and row counts."""


def load_rows(
    spec: TrainSpec,
    *,
    skill: Path,
    data_dir: Path,
    document: str | None = None,
    said: Callable[[str], None] = lambda _: None,
) -> Split:
    """Rows of every source. Relative paths count from the skill folder.

    What one source tunes on or holds out is trained on by none: sources may share documents.
    `document` is as `rows_from_jsonl` takes it; `said` is told of each source before it is read,
    which takes minutes of a large data set.
    Raises `InputError` for a source that is missing, empty or malformed.
    """
    splits: list[tuple[list[Row], list[Row], list[Row]]] = []
    sources: list[dict[str, Any]] = []
    for number, source in enumerate(spec.data, start=1):
        name = _name(source)
        said(f"reading {name} ({number} of {len(spec.data)})")
        rows, digest = _read(source, spec.seed, skill, data_dir, document)
        if not rows:
            raise InputError("no rows", where=name)
        splits.append(_split(rows, source))
        sources.append(
            {
                "source": name,
                "license": source.license
                or LICENSES.get(source.dataset or "", "as its owner says"),
                "sha256": digest,
                "options": dict(source.options),
                "limit": source.limit,
                "repeat": source.repeat,
                "files": {name: _digest([skill / name]) for name in _option_files(source)},
            }
        )
    measured = {row.group for _, tuned, held in splits for row in (*tuned, *held)}
    splits = [([r for r in kept if r.group not in measured], t, h) for kept, t, h in splits]
    for facts, parts in zip(sources, splits, strict=True):
        for name, rows in zip(("train", "tuning", "holdout"), parts, strict=True):
            facts[f"{name}_rows"] = len(rows)
    known: set[str] = set()
    if any(source.negations for source in spec.data):
        known = {_key(row) for parts in splits for part in parts for row in part}
    for at, source in enumerate(spec.data):
        kept, tuned, held = splits[at]
        if (how := source.negations) is not None:
            _check_negations(how, (*kept, *tuned, *held), sources[at]["source"])
            more = _negated(kept, how, known)
            splits[at] = [*kept, *more], tuned, held
            sources[at] |= {"negations": how.model_dump(mode="json"), "negated_rows": len(more)}
    splits = [(kept * s.repeat, t, h) for s, (kept, t, h) in zip(spec.data, splits, strict=True)]
    train, tuning, holdout = (tuple(chain(*parts)) for parts in zip(*splits, strict=True))
    return Split(train, tuning, holdout, tuple(sources))


def calibration_rows(
    spec: TrainSpec,
    *,
    skill: Path,
    data_dir: Path,
    document: str | None = None,
    said: Callable[[str], None] = lambda _: None,
) -> tuple[list[Row], list[dict[str, Any]]]:
    """What `calibration` gives, but for what it holds out, and where it comes from.

    Raises as `load_rows` does.
    """
    if not spec.calibration:
        return [], []
    spec = spec.model_copy(update={"data": spec.calibration})
    split = load_rows(spec, skill=skill, data_dir=data_dir, document=document, said=said)
    return [*split.train, *split.tuning], list(split.sources)


def own_files(source: DataSpec, skill: Path) -> list[Path]:
    """The files of a source that are not a public data set's."""
    rows = [source.path] if source.path and not source.dataset else []
    return [skill / name for name in (*rows, *_option_files(source))]


def _option_files(source: DataSpec) -> list[str]:
    return [value for key, value in source.options.items() if key in _FILES and value]


def rows_from_jsonl(path: Path, document: str | None = None) -> list[Row]:
    """Rows of a JSONL file: `{"input": ..., "expected": ...}`, `expected` optional.

    Rows over one document are of one group; `document` is the input field that holds it
    (`retrieval.document` of a manifest).
    """
    rows = []
    try:
        records = list(numbered_jsonl(path))
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read it: {error}", where=str(path)) from error
    for number, record in records:
        place = f"{path}:{number}"
        if not isinstance(record, dict) or "input" not in record:
            raise InputError('a row is {"input": ..., "expected": ...}', where=place)
        group = _group(record["input"], document)
        rows.append(Row(record["input"], record.get("expected"), group, place))
    return rows


def _name(source: DataSpec) -> str:
    if source.dataset is None:
        return source.path or ""
    split = source.options.get("split")
    return source.dataset + (f" split={split}" if "split" in source.options else "")


def _read(
    source: DataSpec, seed: int, skill: Path, data_dir: Path, document: str | None
) -> tuple[list[Row], str]:
    if source.dataset is None:
        if source.path is None:
            raise InputError("a source needs `path` or `dataset`", where="train.yaml")
        path = skill / source.path
        return rows_from_jsonl(path, document), _digest([path])
    folder = skill / source.path if source.path else data_dir
    options = {
        key: str(skill / value) if key in _FILES else value for key, value in source.options.items()
    }
    records = load_dataset(
        source.dataset, folder, seed=seed, part_of=partial(part_of, source=source), **options
    )
    rows = [
        Row(
            _map(source.input, record),
            _map(source.expected, record),
            str(record["group"]),
            f"data set {source.dataset}, {record['group']}",
        )
        for record in records
    ]
    return rows, _digest(dataset_files(source.dataset, folder))


def _map(template: Any, record: dict[str, Any]) -> Any:
    """A template with every string in it evaluated as a Jinja expression over the record."""
    if isinstance(template, dict):
        mapped = {key: _map(value, record) for key, value in template.items()}
        return {key: value for key, value in mapped.items() if value is not None}
    if isinstance(template, list):
        return [_map(value, record) for value in template]
    if not isinstance(template, str):
        return template
    try:
        value = _expression(template)(**record)
    except (TemplateError, TypeError, ValueError, LookupError, ArithmeticError) as error:
        raise InputError(f"{template!r}: {error}", where="train.yaml") from error
    if isinstance(value, Undefined):
        raise InputError(
            f"{template!r}: a record has no such field",
            where="train.yaml",
            hint=f"it has: {', '.join(record)}",
        )
    return value


@lru_cache(maxsize=256)
def _expression(template: str) -> TemplateExpression:
    return _jinja.compile_expression(template, undefined_to_none=False)


def _group(input: Json, document: str | None) -> str:
    """Rows over one document belong together; a row without one stands alone.

    Where no field is said to hold it, a long text is taken for the document.
    """
    texts = input.values() if isinstance(input, dict) else [input]
    longest = max((t for t in texts if isinstance(t, str)), key=len, default="")
    if document and isinstance(input, dict) and input.get(document):
        said = input[document]
        key = said if isinstance(said, str) else json.dumps(said, sort_keys=True)
    else:
        key = longest if len(longest) > 400 else json.dumps(input, sort_keys=True)
    return hashlib.sha256(key.encode()).hexdigest()[:16]


def _split(rows: Sequence[Row], source: DataSpec) -> tuple[list[Row], list[Row], list[Row]]:
    """By hashes of the group, so that no row moves between parts when others are added.

    What is held out is so whatever the limit: raising it never trains on what was measured on.
    """
    parts = {group: part_of(group, source) for group in dict.fromkeys(row.group for row in rows)}
    held = {group for group, part in parts.items() if part == "holdout"}
    used = [group for group in parts if group not in held]
    if source.limit is not None:
        used = sorted(used, key=_hash)[: source.limit]
    tuning = {group for group in used if parts[group] == "tuning"}
    train = set(used) - tuning
    return (
        [row for row in rows if row.group in train],
        [row for row in rows if row.group in tuning],
        [row for row in rows if row.group in held],
    )


def _check_negations(how: NegationSpec, rows: Sequence[Row], source: str) -> None:
    """Raises `InputError` for rows whose statement or answer is not where `how` says."""
    said: set[str] = set()
    for row in rows:
        statement = row.input.get(how.field) if isinstance(row.input, dict) else None
        answer = row.expected.get(how.expected) if isinstance(row.expected, dict) else None
        if not isinstance(statement, str) or not isinstance(answer, str):
            raise InputError(
                f"negations want texts: the statement in `{how.field}` of the input, the answer "
                f"in `{how.expected}` of what is expected",
                where=row.place or source,
            )
        said.add(answer)
    if missing := [one for one in how.opposites if one not in said]:
        raise InputError(
            f"negations.opposites: no row is answered {' or '.join(map(repr, missing))}",
            where=source,
            hint=f"the answers are {', '.join(sorted(said))}",
        )


def _negated(rows: Sequence[Row], how: NegationSpec, known: set[str]) -> list[Row]:
    """Rows that ask the negations of some rows' statements, each with what is right of it.

    One that is `known`, since another row asks the same, is left out: what is right of it is said
    there. Those that are added are known from then on.
    """
    turned = dict((how.opposites, how.opposites[::-1]))
    added: list[Row] = []
    for row in rows:
        statement, answer = row.input[how.field], row.expected[how.expected]
        text = negated(statement)
        if text is None or _hash(f"negated/{row.group}/{statement}") >= how.share:
            continue
        one = Row(
            {**row.input, how.field: text},
            {**row.expected, how.expected: turned.get(answer, answer)},
            row.group,
            f"{row.place}, negated",
        )
        if (key := _key(one)) not in known:
            known.add(key)
            added.append(one)
    return added


def _key(row: Row) -> str:
    """A digest of an input's words, however they are spaced."""
    given = row.input.items() if isinstance(row.input, dict) else [("", row.input)]
    plain = [(k, " ".join(v.split()) if isinstance(v, str) else v) for k, v in given]
    asked = json.dumps(sorted(plain, key=lambda one: one[0]), sort_keys=True)
    return hashlib.sha256(asked.encode()).hexdigest()


def part_of(group: str, source: DataSpec) -> Literal["holdout", "tuning", "train"]:
    """What rows of this group are for, as far as the source's limit leaves them in."""
    if _hash("holdout/" + group) < source.holdout:
        return "holdout"
    return "tuning" if _hash("tuning/" + group) < source.tuning else "train"


def _hash(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64


def _digest(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        try:
            digest.update(path.read_bytes())
        except OSError as error:
            raise InputError("cannot read it", where=str(path)) from error
    return digest.hexdigest()
