"""LangGraph checkpoints in SQLite, decoded strictly.

LangGraph's serializer can rebuild any importable object, which lets a tampered database run code.
Ours rebuilds three types, by name and without importing anything, and refuses every other: state is
plain JSON, whose whole numbers may be large, and LangGraph itself adds only sets (of nodes that a
join has seen) and interrupts.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import ormsgpack
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import CheckpointTuple
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.types import Interrupt

from agentkit.errors import CheckpointError
from agentkit.workflow.database import connect, guarded

ALLOWED: tuple[tuple[str, str], ...] = (
    ("builtins", "set"),
    ("langgraph.types", "Interrupt"),
)
_OPTIONS = ormsgpack.OPT_NON_STR_KEYS
_LARGE = (
    ormsgpack.OPT_PASSTHROUGH_BIG_INT
    | ormsgpack.OPT_PASSTHROUGH_DATACLASS
    | ormsgpack.OPT_REPLACE_SURROGATES
)
_EXT = 0
"""Code of our own extensions; what they hold says what they are."""


class StrictSerializer(JsonPlusSerializer):
    """Msgpack of plain data plus `ALLOWED`; anything else raises `CheckpointError`."""

    def __init__(self) -> None:
        super().__init__(
            pickle_fallback=False,
            allowed_json_modules=None,
            allowed_msgpack_modules=ALLOWED,
            __unpack_ext_hook__=_rebuild,
        )

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        """As LangGraph does, and whole numbers of more than 64 bits, which Msgpack has not."""
        try:
            return super().dumps_typed(obj)
        except ormsgpack.MsgpackEncodeError:
            return "msgpack", ormsgpack.packb(obj, default=_apart, option=_OPTIONS | _LARGE)

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        kind, payload = data
        if kind == "null":
            return None
        if kind != "msgpack":
            raise CheckpointError(
                f"the checkpoint holds {str(kind)[:40]!r} data, which is never read",
                hint="start the run again",
            )
        try:
            return ormsgpack.unpackb(payload, ext_hook=_rebuild, option=_OPTIONS)
        except (ValueError, TypeError) as error:
            raise CheckpointError(
                "the checkpoint is damaged or holds something other than plain data",
                hint="start the run again",
            ) from error


def _apart(value: Any) -> ormsgpack.Ext:
    """What Msgpack does not have, as `_rebuild` reads it."""
    argument: Any
    if isinstance(value, int):
        argument = str(value)
    elif isinstance(value, set):
        argument = list(value)
    elif isinstance(value, Interrupt):
        argument = {"value": value.value, "id": value.id}
    else:
        raise TypeError(f"{type(value).__name__} is not kept in a checkpoint")
    kind = type(value)
    named = (kind.__module__, kind.__name__, argument)
    return ormsgpack.Ext(_EXT, ormsgpack.packb(named, default=_apart, option=_OPTIONS | _LARGE))


def _rebuild(code: int, data: bytes) -> Any:
    entry = ormsgpack.unpackb(data, ext_hook=_rebuild, option=_OPTIONS)
    module, name, argument = entry[0], entry[1], entry[2]
    if (module, name) == ("builtins", "set") and isinstance(argument, list):
        return set(argument)
    if (module, name) == ("builtins", "int") and isinstance(argument, str):
        return int(argument)
    if (module, name) == ("langgraph.types", "Interrupt") and isinstance(argument, dict):
        return Interrupt(value=argument["value"], id=str(argument["id"]))
    raise ValueError(f"{module}.{name} is not allowed in a checkpoint")


def open_saver(path: Path | None) -> SqliteSaver:
    """A checkpointer on a database file; None keeps checkpoints in memory.

    Raises `CheckpointError` if the file is damaged.
    """
    connection = connect(path)
    connection.isolation_level = "DEFERRED"
    saver = SqliteSaver(connection, serde=StrictSerializer())
    with guarded(path):
        saver.setup()
    return saver


def read_checkpoint(saver: SqliteSaver, run_id: str, path: Path | None) -> CheckpointTuple | None:
    """The last checkpoint of a run, checked; None if the run has none yet.

    Raises `CheckpointError` if it cannot be trusted.
    """
    config: RunnableConfig = {"configurable": {"thread_id": run_id, "checkpoint_ns": ""}}
    try:
        with guarded(path):
            found = saver.get_tuple(config)
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise _damaged(run_id, str(error)) from error
    if found is None:
        return None
    checkpoint: Any = found.checkpoint
    if not isinstance(checkpoint, dict):
        raise _damaged(run_id, "not a checkpoint")
    for key in ("channel_values", "channel_versions", "versions_seen"):
        if not isinstance(checkpoint.get(key), dict):
            raise _damaged(run_id, f"no {key}")
    values = checkpoint["channel_values"]
    for key in ("inputs", "steps", "run"):
        if not isinstance(values.get(key, {}), dict):
            raise _damaged(run_id, f"{key} is not a mapping")
    return found


def forget(saver: SqliteSaver) -> None:
    """Close the checkpointer's connection."""
    try:
        saver.conn.close()
    except sqlite3.ProgrammingError as error:
        raise CheckpointError(f"cannot close the run database: {error}") from error


def _damaged(run_id: str, what: str) -> CheckpointError:
    return CheckpointError(
        f"the checkpoint of run {run_id!r} is damaged: {what}", hint="start the run again"
    )
