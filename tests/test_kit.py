"""A kit that stays open: its parts are made once, and it follows its folders of skills."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from agentkit.kit import Kit
from agentkit.settings import Settings
from agentkit.testing import TinyBackbone, tiny_adapter

Make = Callable[..., Settings]


def test_threads_that_ask_at_the_same_time_get_the_same_part(tiny_settings: Make) -> None:
    with Kit(tiny_settings()) as kit, ThreadPoolExecutor(8) as pool:
        begin = threading.Barrier(8)

        def ask(_: int) -> object:
            begin.wait()
            return kit.registry

        assert len(set(map(id, pool.map(ask, range(8))))) == 1


def test_a_folder_is_listed_and_delisted_while_the_kit_is_open(
    tiny_settings: Make, tiny_backbone: TinyBackbone, tmp_path: Path
) -> None:
    made = tiny_adapter(tmp_path / "workshop" / "leaf-counter", tiny_backbone, manifest={})
    served = tmp_path / "served"
    served.mkdir()
    with Kit(tiny_settings(), skills=[served], watch=True) as kit:
        assert "leaf-counter" not in kit.skills
        come, gone = threading.Event(), threading.Event()
        kit.registry.subscribe(
            lambda snapshot: (come if "leaf-counter" in snapshot.skills else gone).set()
        )
        shutil.copytree(made, served / "leaf-counter")
        assert come.wait(timeout=20)
        digest = kit.skills["leaf-counter"].digest
        shutil.rmtree(served / "leaf-counter")
        assert gone.wait(timeout=20)
        assert "leaf-counter" not in kit.skills
        assert kit.store.get(digest, "leaf-counter").digest == digest


def test_a_closed_kit_opens_its_parts_anew(tiny_settings: Make) -> None:
    kit = Kit(tiny_settings())
    first = kit.runs
    kit.close()
    kit.close()
    with kit:
        assert kit.runs is not first
        assert kit.runs.list() == ()


@pytest.mark.parametrize("place", ["nowhere", "bad\0name"])
def test_a_workflow_finds_no_document_where_there_is_none(tiny_settings: Make, place: str) -> None:
    from agentkit.errors import InputError

    with Kit(tiny_settings()) as kit, pytest.raises(InputError):
        kit.readers(Path("/"))["document"](place)
