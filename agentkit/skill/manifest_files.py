"""`SKILL.md` and `skill.yaml` (or the README of a bare PEFT folder) as a `Manifest`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jinja2
from pydantic import BaseModel, ValidationError

from agentkit.errors import SkillError
from agentkit.skill import manifest as _manifest
from agentkit.skill.figures import figures_of, unknown_floors
from agentkit.skill.guarded_yaml import KeyPath, YamlSource, did_you_mean, parse_yaml
from agentkit.skill.manifest import (
    MAX_DESCRIPTION,
    ChoiceAnswer,
    GenerateAnswer,
    Manifest,
    MarksAnswer,
)
from agentkit.skill.names import split_version
from agentkit.skill.schema import check_schema

SKILL_MD = "SKILL.md"
SKILL_YAML = "skill.yaml"

MAX_COMPATIBILITY = 500

_FRONT_MATTER_KEYS = (
    "name",
    "description",
    "license",
    "compatibility",
    "metadata",
    "allowed-tools",
)
_FROM_SKILL_MD = ("name", "description", "instructions", "license")
_YAML_KEYS = tuple(key for key in Manifest.model_fields if key not in _FROM_SKILL_MD)
_PLACEHOLDER = "Replace this with"
"""How what a new skill's files leave to be said begins (see `agentkit.skill.template`)."""
_FENCE = re.compile(r"---[ \t]*\n")
_TEMPLATES: tuple[KeyPath, ...] = (
    ("prompt", "question"),
    ("retrieval", "query"),
    ("answer", "choice_given"),
)


def _all_keys() -> tuple[str, ...]:
    keys: set[str] = set(_YAML_KEYS)
    for value in vars(_manifest).values():
        if isinstance(value, type) and issubclass(value, BaseModel):
            keys.update(value.model_fields)
    return tuple(sorted(keys - set(_FROM_SKILL_MD)))


_KNOWN_KEYS = _all_keys()


def build_manifest(
    folder: Path, name: str, skill_md: str, skill_yaml: str | None
) -> tuple[Manifest, tuple[str, ...]]:
    """The manifest of a folder called `name`, from the texts of its files, and warnings.

    `folder` is only named in messages. Raises `SkillError` with `file:line:column`.
    """
    head, instructions, warnings = _front_matter(skill_md, str(folder / SKILL_MD), name)
    source = parse_yaml(skill_yaml or "", str(folder / SKILL_YAML))
    values = {} if source.value is None else source.value
    if not isinstance(values, dict):
        raise SkillError(
            "must be a mapping", where=source.where(), hint="known keys: " + ", ".join(_YAML_KEYS)
        )
    for key in values:
        if key in _FROM_SKILL_MD:
            raise SkillError(
                f"{key!r} does not belong here",
                where=source.where((key,)),
                hint=f"it is read from {SKILL_MD}",
            )
    try:
        manifest = Manifest(
            name=name,
            description=head["description"],
            instructions=instructions,
            license=head.get("license"),
            **values,
        )
    except ValidationError as cause:
        keys = _YAML_KEYS if len(cause.errors()[0]["loc"]) == 1 else _KNOWN_KEYS
        raise source.error(cause, SkillError, keys) from cause
    _check_values(manifest, source)
    warnings += tuple(_left_to_fill_in(folder, skill_md))
    warnings += tuple(_unlisted_fields(manifest, source))
    return manifest, (*warnings, *_floor_warnings(manifest, source))


def read_manifest(folder: Path) -> tuple[Manifest, tuple[str, ...]]:
    """The manifest of a folder that may have no weights yet, and warnings: where training begins.

    Raises `SkillError` with `file:line:column`, also where `SKILL.md` is missing.
    """
    try:
        skill_md = (folder / SKILL_MD).read_text(encoding="utf-8")
        yaml_file = folder / SKILL_YAML
        skill_yaml = yaml_file.read_text(encoding="utf-8") if yaml_file.exists() else None
    except (OSError, UnicodeDecodeError) as cause:
        raise SkillError(f"cannot be read: {cause}", where=str(folder)) from cause
    name, _ = split_version(folder.resolve().name, str(folder))
    return build_manifest(folder, name, skill_md, skill_yaml)


def bare_manifest(name: str, readme: str | None) -> tuple[Manifest, tuple[str, ...]]:
    """The manifest of a folder with none of our files: free text in, free text out."""
    description = first_paragraph(readme) if readme else ""
    if description:
        return Manifest(name=name, description=description), ()
    return (
        Manifest(name=name, description=f"The adapter {name}."),
        (
            "nothing says what this adapter is for, so the controller can hardly choose it; "
            f"add {SKILL_MD} with a description",
        ),
    )


def first_paragraph(markdown: str) -> str:
    """The first paragraph of prose, on one line; empty if there is none.

    Front matter, headings, lists, quotes, tables, images, comments, code, and the placeholders of
    a model card that nobody filled in are passed over.
    """
    text = markdown.removeprefix("\ufeff").replace("\r\n", "\n")
    if fence := _FENCE.match(text):
        closing = re.compile(r"^---[ \t]*$", re.MULTILINE).search(text, fence.end())
        text = text[closing.end() :] if closing else text
    text = re.sub(r"<!--.*?(?:-->|\Z)", "", text, flags=re.DOTALL)
    text = re.sub(r"^(```|~~~).*?(?:^\1|\Z)", "", text, flags=re.DOTALL | re.MULTILINE)
    for block in re.split(r"\n[ \t]*\n", text):
        lines = [line.strip() for line in block.splitlines()]
        prose = [line for line in lines if line and not line.startswith("#")]
        if not prose or re.match(r"[-*+>|<!]|\[!|\d+[.)] |[=_]{3}", prose[0]):
            continue
        paragraph = " ".join(prose)
        if "[More Information Needed]" not in paragraph:
            return paragraph[:MAX_DESCRIPTION]
    return ""


def _front_matter(
    text: str, file: str, name: str
) -> tuple[Mapping[str, Any], str, tuple[str, ...]]:
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    opening = _FENCE.match(text)
    closing = (
        re.compile(r"^---[ \t]*$", re.MULTILINE).search(text, opening.end()) if opening else None
    )
    if opening is None or closing is None:
        raise SkillError(
            "no front matter",
            where=f"{file}:1:1",
            hint="begin with a line ---, then name: and description:, then a line ---",
        )
    source = parse_yaml(text[opening.end() : closing.start()], file, first_line=2)
    if not isinstance(source.value, dict):
        raise SkillError("the front matter must be a mapping", where=f"{file}:2:1")
    values: dict[str, Any] = source.value
    for key in ("name", "description"):
        if not isinstance(values.get(key), str) or not values[key].strip():
            raise SkillError(f"{key} must be a text that is not empty", where=source.where((key,)))
    if values["name"] != name:
        raise SkillError(
            f"the name is {values['name']!r} but the folder is called {name!r}",
            where=source.where(("name",)),
            hint="make them the same; a version (NAME@2) belongs to the folder's name alone",
        )
    _at_most(source, "description", MAX_DESCRIPTION)
    for key in ("license", "compatibility"):
        if key in values and not isinstance(values[key], str):
            raise SkillError(f"{key} must be a text", where=source.where((key,)))
    if "compatibility" in values:
        _at_most(source, "compatibility", MAX_COMPATIBILITY)
    if not isinstance(values.get("metadata", {}), dict):
        raise SkillError("metadata must be a mapping", where=source.where(("metadata",)))
    warnings = tuple(_unknown_key(key, source) for key in values if key not in _FRONT_MATTER_KEYS)
    values["description"] = " ".join(values["description"].split())
    return values, text[closing.end() :].strip(), warnings


def _unknown_key(key: str, source: YamlSource) -> str:
    hint = did_you_mean(key, _FRONT_MATTER_KEYS)
    return f"{source.where((key,))}: unknown front-matter key {key!r} ignored ({hint})"


def _at_most(source: YamlSource, key: str, limit: int) -> None:
    length = len(source.value[key])
    if length > limit:
        raise SkillError(
            f"{key} has {length:,} characters; the limit is {limit:,}", where=source.where((key,))
        )


def _left_to_fill_in(folder: Path, skill_md: str) -> Iterator[str]:
    """What a new skill's `SKILL.md` still says in the place of what it is to say."""
    for number, line in enumerate(skill_md.splitlines(), start=1):
        if _PLACEHOLDER in line:
            yield f"{folder / SKILL_MD}:{number}:1: is to be filled in: {line.strip()}"


def _unlisted_fields(manifest: Manifest, source: YamlSource) -> Iterator[str]:
    """Fields that the answer gives and the output schema, which lists some, does not."""
    listed, answer = manifest.output.get("properties"), manifest.answer
    given = {}
    if isinstance(answer, ChoiceAnswer):
        given = {answer.field: "field", answer.evidence_field: "evidence_field"}
    elif isinstance(answer, MarksAnswer):
        given = dict.fromkeys(answer.fields, "fields")
    for name, key in given.items():
        if name and isinstance(listed, dict) and name not in listed:
            place = source.where(("answer", key))
            yield f"{place}: the answer gives {name!r}, which output.properties does not list"


def _floor_warnings(manifest: Manifest, source: YamlSource) -> Iterator[str]:
    # Only a warning: a skill serves as well whatever it promises of an evaluation.
    figures, _ = figures_of(manifest)
    for name in unknown_floors(manifest):
        place = source.where(("metrics", name))
        hint = did_you_mean(name, figures)
        yield f"{place}: there is no metric {name!r}, so `agentkit eval` will refuse it ({hint})"


def _check_values(manifest: Manifest, source: YamlSource) -> None:
    check_schema(manifest.input, source, ("input",))
    check_schema(manifest.output, source, ("output",))
    environment = jinja2.Environment()
    answer = manifest.answer
    given = answer.choice_given if isinstance(answer, GenerateAnswer) else None
    texts = (manifest.prompt.question, manifest.retrieval.query, given)
    for path, text in zip(_TEMPLATES, texts, strict=True):
        if text is None:
            continue
        try:
            environment.parse(text)
        except jinja2.TemplateSyntaxError as cause:
            raise SkillError(
                f"line {cause.lineno} of the template: {cause.message}", where=source.where(path)
            ) from cause
        except RecursionError as cause:
            raise SkillError("the template is nested too deep", where=source.where(path)) from cause
        except ValueError as cause:  # a number of thousands of digits
            raise SkillError(f"the template: {cause}", where=source.where(path)) from cause
    for index, utterance in enumerate(manifest.utterances):
        if not utterance.strip():
            raise SkillError("an empty utterance", where=source.where(("utterances", index)))
