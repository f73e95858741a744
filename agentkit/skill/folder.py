"""A skill folder on disk, checked, as a frozen `Skill`.

Nothing in a skill folder is ever run or unpickled: text is parsed as data, weights are
safetensors, Python files and chat templates are passed over with a warning. The weights
themselves are checked by `agentkit.adapters`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

from agentkit.errors import AdapterError, SkillError
from agentkit.skill.manifest import MAX_NAME, NAME, ChoiceAnswer, Manifest, MarksAnswer
from agentkit.skill.manifest_files import SKILL_MD, SKILL_YAML, bare_manifest, build_manifest
from agentkit.skill.names import split_version

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
HEAD_WEIGHTS = "head.safetensors"
README = "README.md"
METRICS = "metrics.json"
PICKLED_WEIGHTS = "adapter_model.bin"

RESERVED = {
    "auto": "a step says it to let the controller choose",
    "base": "a step says it for the backbone without an adapter",
    "human": "a step says it to ask a person",
    "fail": "a step says it to stop",
    "lora": "it is part of the names of adapter tensors",
}

MAX_TEXT_BYTES = 512_000
MAX_WEIGHTS_BYTES = 8 << 30
MAX_ENTRIES = 2_000

_SERVED = (SKILL_MD, SKILL_YAML, ADAPTER_CONFIG, ADAPTER_WEIGHTS, HEAD_WEIGHTS)
_MARKERS = (SKILL_MD, SKILL_YAML, ADAPTER_CONFIG, ADAPTER_WEIGHTS, PICKLED_WEIGHTS)
_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class Skill:
    """A skill folder that passed its checks, as it was when it was read."""

    manifest: Manifest
    path: Path
    """The folder: the one given to `load_skill`, or its copy in a `SkillStore`."""
    digest: str
    """SHA-256, hex, of the names and contents of `files`."""
    files: tuple[str, ...]
    """Names of the files that decide how the skill is served, sorted."""
    warnings: tuple[str, ...]
    head: bool
    """Whether the folder holds a task head."""

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def adapter(self) -> bool:
        """Whether the folder holds an adapter; one without has a head for the bare backbone."""
        return ADAPTER_WEIGHTS in self.files

    @property
    def adapter_config(self) -> Path:
        return self.path / ADAPTER_CONFIG

    @property
    def adapter_weights(self) -> Path:
        return self.path / ADAPTER_WEIGHTS

    @property
    def head_weights(self) -> Path | None:
        return self.path / HEAD_WEIGHTS if self.head else None


def check_name(name: str, where: str) -> None:
    """Raise `SkillError` unless `name` may name a skill; the message says which rule it breaks."""
    rule = "a name is lowercase letters and digits in groups joined by single hyphens"
    if len(name) > MAX_NAME:
        raise SkillError(
            f"the name has {len(name)} characters; the limit is {MAX_NAME}",
            where=where,
            hint="shorten the folder's name",
        )
    if not NAME.fullmatch(name):
        shown = name if name.isprintable() else ascii(name)
        raise SkillError(f"{shown!r} cannot name a skill: {rule}", where=where)
    if name in RESERVED:
        raise SkillError(
            f"the name {name!r} is reserved: {RESERVED[name]}",
            where=where,
            hint="rename the folder",
        )


def is_skill_folder(path: Path) -> bool:
    """Whether a folder holds at least one of the files by which skills are known."""
    return any(os.path.lexists(path / marker) for marker in _MARKERS)


def load_skill(path: Path, *, name: str | None = None) -> Skill:
    """Read and check a skill folder.

    A folder called `NAME@VERSION` holds a version of the skill `NAME`. `name` overrides the
    folder's own, for a copy that lies under another one.

    Raises `SkillError` (with `file:line:column` where a text file is at fault) and `AdapterError`
    where the adapter is missing or only there as a pickle.
    """
    folder = Path(os.path.abspath(path))  # noqa: PTH100 -- resolve() would change the name of a link
    if not folder.is_dir():
        raise SkillError("no such folder", where=str(path), hint="a skill is a folder")
    if name is None:
        name, _ = split_version(folder.name, str(path))
    check_name(name, str(path))
    warnings = list(_look_over(folder))
    _require_adapter(folder)

    texts = {
        file: _read_text(folder, file)
        for file in (SKILL_MD, SKILL_YAML, README)
        if os.path.lexists(folder / file)
    }
    if SKILL_MD in texts:
        files = [file for file in _SERVED if os.path.lexists(folder / file)]
        manifest, notes = build_manifest(
            folder, name, texts[SKILL_MD].decode(), _decoded(texts.get(SKILL_YAML))
        )
    elif SKILL_YAML in texts:
        raise SkillError(
            f"{SKILL_YAML} without {SKILL_MD}",
            where=str(path),
            hint=f"add {SKILL_MD} with a name and a description in its front matter",
        )
    else:
        # The description is all that the controller knows of a bare folder, so it counts here.
        served = (*_SERVED, README)
        files = [file for file in served if os.path.lexists(folder / file)]
        manifest, notes = bare_manifest(name, _decoded(texts.get(README)))
    head = HEAD_WEIGHTS in files
    _require_head(manifest, head, folder, alone=ADAPTER_WEIGHTS not in files)
    files.sort()
    digest = folder_digest(folder, tuple(files), texts)
    return Skill(manifest, folder, digest, tuple(files), (*warnings, *notes), head)


def folder_digest(
    folder: Path, files: tuple[str, ...], known: Mapping[str, bytes] | None = None
) -> str:
    """SHA-256, hex, over each name and the SHA-256 of its content; `known` contents are not reread.

    Raises `SkillError` if a file is missing, is no regular file, or lies outside `folder`.
    """
    total = sha256(b"agentkit skill 1\n")
    for file in sorted(files):
        content = sha256()
        if known is not None and file in known:
            content.update(known[file])
        else:
            with open_inside(folder, file) as stream:
                while block := stream.read(_BLOCK):
                    content.update(block)
        total.update(file.encode() + b"\0" + content.digest())
    return total.hexdigest()


def open_inside(folder: Path, file: str) -> BinaryIO:
    """Open a regular file of `folder` for reading, by its real path and without following links.

    Raises `SkillError` if it is missing, unreadable, special, or a link that leaves the folder.
    """
    path = folder / file
    try:
        real = _inside(folder, path)
        # Non-blocking, so that a pipe put there between check and open cannot hang the reader.
        fd = os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as cause:
        reason = cause.strerror or type(cause).__name__
        raise SkillError(f"cannot be read: {reason}", where=str(path)) from cause
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise SkillError("is not a regular file", where=str(path))
    return os.fdopen(fd, "rb")


def _inside(folder: Path, path: Path) -> Path:
    """The real path, if it lies in `folder`; raises `SkillError` or `OSError`."""
    real = path.resolve(strict=True)
    if not real.is_relative_to(folder.resolve()):
        raise SkillError(
            "a link that leaves the skill folder",
            where=str(path),
            hint="copy the file itself into the folder",
        )
    return real


def _look_over(folder: Path) -> Iterator[str]:
    """Warn of what is passed over; refuse links that leave the folder and special files."""
    seen = 0
    scripts = []
    for root, directories, names in os.walk(folder, onerror=_raise_unreadable):
        for entry in (*directories, *names):
            seen += 1
            path = Path(root, entry)
            if seen > MAX_ENTRIES:
                raise SkillError(
                    f"more than {MAX_ENTRIES:,} files and folders",
                    where=str(folder),
                    hint="keep training checkpoints and data outside the skill folder",
                )
            try:
                mode = _inside(folder, path).stat().st_mode
            except (OSError, RuntimeError) as cause:
                raise SkillError("a link that leads nowhere", where=str(path)) from cause
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise SkillError("is not a regular file", where=str(path))
            if path.suffix in (".py", ".pyc", ".so"):
                scripts.append(path.relative_to(folder).as_posix())
    if scripts:
        shown = ", ".join(sorted(scripts)[:3]) + (", ..." if len(scripts) > 3 else "")
        yield f"code in a skill folder is never run; ignored: {shown}"
    if (folder / "chat_template.jinja").exists() or (folder / "chat_template.json").exists():
        yield "a chat template in a skill folder is ignored: the prompt's layout is agentkit's own"
    elif (folder / "tokenizer_config.json").exists() and _names_chat_template(folder):
        yield "the chat template in tokenizer_config.json is ignored, as is the whole file"


def _names_chat_template(folder: Path) -> bool:
    with open_inside(folder, "tokenizer_config.json") as stream:
        return b'"chat_template"' in stream.read(16 * _BLOCK)


def _raise_unreadable(error: OSError) -> None:
    raise SkillError(f"cannot be read: {error.strerror}", where=str(error.filename)) from error


def _require_adapter(folder: Path) -> None:
    has_weights = (folder / ADAPTER_WEIGHTS).is_file()
    if not has_weights and (folder / PICKLED_WEIGHTS).exists():
        raise AdapterError(
            f"only {PICKLED_WEIGHTS}: pickles are never read",
            where=str(folder),
            hint=f"convert the weights to {ADAPTER_WEIGHTS} with safetensors.torch.save_file, "
            "in a place where running the pickle is safe",
        )
    missing = [file for file in (ADAPTER_CONFIG, ADAPTER_WEIGHTS) if not (folder / file).is_file()]
    if len(missing) == 2 and (folder / HEAD_WEIGHTS).is_file():
        return  # a task head that reads the bare backbone; its file says that it was trained so
    if missing:
        raise AdapterError(
            f"{' and '.join(missing)} missing: an adapter is what makes a folder a skill",
            where=str(folder),
            hint=_how_to_get_one(folder),
        )
    size = (folder / ADAPTER_WEIGHTS).stat().st_size
    if size > MAX_WEIGHTS_BYTES:
        raise AdapterError(
            f"{size:,} bytes of weights; the limit is {MAX_WEIGHTS_BYTES:,}",
            where=str(folder / ADAPTER_WEIGHTS),
        )


def _require_head(manifest: Manifest, head: bool, folder: Path, *, alone: bool) -> None:
    answer = manifest.answer
    needs = isinstance(answer, MarksAnswer) or bool(manifest.head_choices)
    if needs and not head:
        hint = "train the skill"
        if isinstance(answer, ChoiceAnswer):
            hint += ", or set answer.scoring to likelihood"
        raise SkillError(
            f"answer.kind {answer.kind!r} needs {HEAD_WEIGHTS}", where=str(folder), hint=hint
        )
    if alone and not needs:
        raise AdapterError(
            f"{ADAPTER_WEIGHTS} missing, and what the skill answers is not read off a task head",
            where=str(folder),
            hint=_how_to_get_one(folder),
        )


def _how_to_get_one(folder: Path) -> str:
    if (folder / "train.yaml").is_file():
        return f"train it: agentkit train {folder}"
    return "save the trained PEFT model into the folder with save_pretrained"


def _read_text(folder: Path, file: str) -> bytes:
    with open_inside(folder, file) as stream:
        content = stream.read(MAX_TEXT_BYTES + 1)
    if len(content) > MAX_TEXT_BYTES:
        raise SkillError(f"more than {MAX_TEXT_BYTES:,} bytes", where=str(folder / file))
    try:
        content.decode()
    except UnicodeDecodeError as cause:
        line = content.count(b"\n", 0, cause.start) + 1
        raise SkillError(
            "not UTF-8 text", where=f"{folder / file}:{line}", hint="save it as UTF-8"
        ) from cause
    return content


def _decoded(content: bytes | None) -> str | None:
    return None if content is None else content.decode()
