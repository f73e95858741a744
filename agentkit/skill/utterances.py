"""Writing further utterances into a skill's own `skill.yaml`."""

from __future__ import annotations

import io
import os
import uuid
from collections.abc import Sequence
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import CommentMark
from ruamel.yaml.tokens import CommentToken

from agentkit.errors import SkillError
from agentkit.skill.folder import is_skill_folder
from agentkit.skill.manifest_files import SKILL_MD, SKILL_YAML, build_manifest
from agentkit.skill.names import split_version

_PACKAGE = Path(__file__).resolve().parents[1]
_WIDTH = 4096
"""Lines are not broken anew."""


def source_folder(folders: Sequence[Path], name: str) -> Path:
    """The folder called `NAME` or `NAME@VERSION` among folders of skills and skill folders; of
    several, the last, which is the one that is served.

    Raises `SkillError` if there is none that may be written to.
    """
    for folder in reversed(folders):
        place = folder if is_skill_folder(folder) and folder.name == name else folder / name
        if not is_skill_folder(place):
            continue
        if place.resolve().is_relative_to(_PACKAGE) or not os.access(place, os.W_OK):
            raise SkillError(
                "this folder may not be written to",
                where=str(place),
                hint="copy the skill to a folder of your own, or learn without --into-skill",
            )
        return place
    raise SkillError(f"there is no folder of the skill {name!r}")


def append_utterances(folder: Path, texts: Sequence[str]) -> Path:
    """Append utterances to `folder/skill.yaml`, keeping its comments and order; returns the file.

    Texts that are there already are left out. The file is written whole or not at all, and only if
    it is sound with them. Raises `SkillError`.
    """
    path = folder / SKILL_YAML
    try:
        skill_md = (folder / SKILL_MD).read_text(encoding="utf-8")
        before = path.read_text(encoding="utf-8") if path.exists() else ""
    except (OSError, UnicodeDecodeError) as cause:
        raise SkillError(
            f"cannot be read: {cause}",
            where=str(folder),
            hint=f"a skill with {SKILL_MD} can be taught; others learn without --into-skill",
        ) from cause
    name, _ = split_version(folder.resolve().name, str(folder))
    build_manifest(folder, name, skill_md, before)
    after = _with_utterances(before, texts)
    build_manifest(folder, name, skill_md, after)
    _write(path, after)
    return path


def _with_utterances(text: str, more: Sequence[str]) -> str:
    yaml = YAML(typ="rt")
    yaml.preserve_quotes = True
    yaml.width = _WIDTH
    yaml.indent(mapping=2, sequence=4, offset=2)
    content = yaml.load(text)
    if content is None:
        content = CommentedMap()
    utterances: CommentedSeq = content.setdefault("utterances", CommentedSeq())
    new = [one for one in dict.fromkeys(more) if one not in utterances]
    following = _lines_after(utterances) if new else ""
    utterances.extend(new)
    if following:
        place = len(utterances) - 1
        utterances.ca.items[place] = [
            CommentToken(following, CommentMark(0), None),
            None,
            None,
            None,
        ]
    stream = io.StringIO()
    yaml.dump(content, stream)
    return stream.getvalue()


def _lines_after(items: CommentedSeq) -> str:
    """Take away what follows the last item (blank lines and comments before the next key), which
    the parser holds to be the item's; the comment on its own line stays with it."""
    tokens = items.ca.items.get(len(items) - 1)
    if not tokens or tokens[0] is None:
        return ""
    own, newline, following = tokens[0].value.partition("\n")
    if not following:
        return ""
    if own.strip():
        tokens[0].value = own + newline
    else:
        del items.ca.items[len(items) - 1]
    return f"{newline}{following}"


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            temporary.chmod(path.stat().st_mode)
        temporary.replace(path)
    except OSError as cause:
        raise SkillError(f"cannot be written: {cause.strerror}", where=str(path)) from cause
    finally:
        temporary.unlink(missing_ok=True)
