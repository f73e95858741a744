"""Names of skill folders: `NAME`, or `NAME@VERSION` for another version of the skill beside it."""

from __future__ import annotations

import re

from agentkit.errors import SkillError

VERSION = re.compile(r"[1-9][0-9]{0,8}(?:\.(?:0|[1-9][0-9]{0,8})){0,3}")
"""Numbers joined by dots, without leading zeros: each version has one spelling."""


def split_version(name: str, where: str) -> tuple[str, str | None]:
    """`NAME@VERSION` as the skill's name and its version; a plain name has the version None.

    The name itself is not checked. Raises `SkillError` for a malformed version.
    """
    base, at, version = name.partition("@")
    if not at:
        return name, None
    if not VERSION.fullmatch(version):
        shown = version if version.isprintable() else ascii(version)
        raise SkillError(
            f"{shown[:40]!r} is not a version of a skill",
            where=where,
            hint=f"numbers joined by dots, without leading zeros, such as {base[:64]}@2 or "
            f"{base[:64]}@2.1",
        )
    return base, version


def version_key(version: str) -> tuple[int, ...]:
    """Sorts versions as numbers: 9 before 10."""
    return tuple(map(int, version.split(".")))
