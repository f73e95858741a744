"""Runs survive kills, other processes, and damage to their database."""

import json
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import ormsgpack
import pytest
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.types import Interrupt

from agentkit.errors import CheckpointError, InputError, RunError
from agentkit.workflow import RunStore, compile_workflow, parse_spec, resume, start
from agentkit.workflow.checkpoints import StrictSerializer
from agentkit.workflow.database import is_alive, process_identity
from agentkit.workflow.store import new_run_id

from .helpers import Documents, ShoutingRunner, StreamingShoutingRunner

CHAIN = """
name: chain
inputs: {rules: {type: list}}
steps:
  first: {skill: shouter, input: {text: one}}
  each: {skill: shouter, for_each: inputs.rules, input: {text: "{{ item }}"}}
  beside: {skill: counter, needs: [first], input: {text: "{{ steps.first.output }}"}}
  last:
    needs: [each, beside]
    skill: shouter
    input: {text: "{{ steps.each | map(attribute='output') | join('+') }}"}
outputs: {all: "{{ steps.last.output }}", n: "{{ steps.beside.output }}"}
"""
INPUTS = {"rules": ["a", "b", "c"]}
EXPECTED = {"all": "A+B+C", "n": 3}
ROWS = [("beside", -1), ("each", 0), ("each", 1), ("each", 2), ("first", -1), ("last", -1)]


def child_main(path, run_id, mode, word, count):
    """Run the workflow, and be killed at the given place."""
    hits = 0

    def die():
        nonlocal hits
        hits += 1
        if hits >= count:
            os.kill(os.getpid(), signal.SIGKILL)

    def before(call):
        if mode == "inside" and call.input["text"] == word:
            die()

    def on_event(event):
        if mode == "event" and event.kind == word:
            die()

    class Store(RunStore):
        def add_result(self, run, step, item, record):
            if mode == "before_record" and step == word:
                die()
            kept = super().add_result(run, step, item, record)
            if mode == "after_record" and step == word:
                die()
            return kept

    with Store(path) as store:
        kind = StreamingShoutingRunner if run_id == "streamed" else ShoutingRunner
        workflow = chain(kind(before=before))
        outcome = start(workflow, INPUTS, store=store, run_id=run_id, on_event=on_event)
    sys.exit(0 if outcome.outputs == EXPECTED else 1)


def child(*arguments):
    process = multiprocessing.get_context("fork").Process(target=child_main, args=arguments)
    process.start()
    return process


def chain(runner=None):
    return compile_workflow(parse_spec(CHAIN), runner or ShoutingRunner(), Documents())


def rows(path, run_id):
    connection = sqlite3.connect(path)
    found = connection.execute(
        "SELECT step, item FROM step_results WHERE run = ? ORDER BY step, item", (run_id,)
    ).fetchall()
    connection.close()
    return found


@pytest.fixture
def path(tmp_path):
    return tmp_path / "runs.sqlite"


@pytest.mark.parametrize(
    ("mode", "word", "count", "again"),
    [
        ("event", "run_started", 1, ["one", "a", "b", "c", "ONE", "A+B+C"]),
        ("inside", "one", 1, ["one", "a", "b", "c", "ONE", "A+B+C"]),
        ("inside", "b", 1, None),
        ("before_record", "each", 2, None),
        ("after_record", "first", 1, ["a", "b", "c", "ONE", "A+B+C"]),
        ("after_record", "each", 2, None),
        ("after_record", "last", 1, []),
        ("event", "step_finished", 2, None),
        ("event", "run_finished", 1, []),
    ],
)
def test_a_killed_run_resumes_and_each_result_is_recorded_once(path, mode, word, count, again):
    process = child(path, "r", mode, word, count)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    before = rows(path, "r")
    runner = ShoutingRunner()
    with RunStore(path) as store:
        outcome = resume(chain(runner), "r", store=store)
        assert outcome.outputs == EXPECTED
        assert store.show("r").status == "done"
    assert rows(path, "r") == ROWS
    done = {"first": "one", "beside": "ONE", "last": "A+B+C"}
    done_texts = [INPUTS["rules"][item] if step == "each" else done[step] for step, item in before]
    assert not set(done_texts) & set(runner.texts)
    if again is not None:
        assert sorted(runner.texts) == sorted(again)


def test_a_run_that_was_killed_and_then_fails_still_finishes(path):
    child(path, "r", "after_record", "first", 1).join()
    with RunStore(path) as store:
        assert [record.status for record in store.list()] == ["interrupted"]
        failing = chain(ShoutingRunner(fail={"A+B+C": 1}))
        assert resume(failing, "r", store=store).status == "failed"
        assert resume(chain(), "r", store=store).outputs == EXPECTED
    assert rows(path, "r") == ROWS


def test_items_that_were_ready_before_a_kill_are_kept(path):
    child(path, "streamed", "inside", "a", 1).join()
    assert {("each", 1), ("each", 2)} < set(rows(path, "streamed"))
    runner = StreamingShoutingRunner()
    with RunStore(path) as store:
        assert resume(chain(runner), "streamed", store=store).outputs == EXPECTED
    assert not {"b", "c"} & set(runner.texts)
    assert rows(path, "streamed") == ROWS


def test_two_processes_on_one_database_both_finish(path):
    processes = [child(path, f"p{n}", "never", "x", 1) for n in range(2)]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    with RunStore(path) as store:
        assert [record.status for record in store.list()] == ["done", "done"]
        for record in store.list():
            assert len(store.show(record.id).steps) == len(ROWS)


def test_a_run_whose_process_lives_is_not_taken_over(path):
    sleeper = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with RunStore(path) as store:
        start(chain(ShoutingRunner(fail={"one": 1})), INPUTS, store=store, run_id="r")
        started = Path(f"/proc/{sleeper.pid}/stat").read_text().rpartition(")")[2].split()[19]
        owner = f"{sleeper.pid}:{started}"
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("UPDATE runs SET status = 'running', owner = ?", (owner,))
        assert store.show("r").status == "running"
        with pytest.raises(RunError, match=f"worked on by process {sleeper.pid}"):
            resume(chain(), "r", store=store)
        sleeper.communicate()
        assert store.show("r").status == "interrupted"
        assert resume(chain(), "r", store=store).status == "done"


def test_a_process_is_known_by_its_start_not_only_its_number():
    assert is_alive(process_identity())
    assert not is_alive(f"{os.getpid()}:1")
    assert not is_alive("not a process")


# ---------------------------------------------------------------- damage


class Planted:
    """What an attacker would have decoded: an object that runs a command when it is rebuilt."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def blobs(self):
        call = ("os", "system", f"touch {self.proof}")
        path = ("pathlib", "Path", (str(self.proof),))
        yield "msgpack", ormsgpack.packb(ormsgpack.Ext(0, ormsgpack.packb(call)))
        yield "msgpack", ormsgpack.packb({"a": [ormsgpack.Ext(0, ormsgpack.packb(call))]})
        yield "msgpack", ormsgpack.packb(ormsgpack.Ext(1, ormsgpack.packb(path)))
        yield (
            "msgpack",
            ormsgpack.packb(ormsgpack.Ext(3, ormsgpack.packb(("os", "environ", "x", "get")))),
        )
        yield "msgpack", ormsgpack.packb(ormsgpack.Ext(5, b"\xc1"))
        yield "msgpack", b"\xc1\x00garbage"
        yield "pickle", b"cos\nsystem\n(S'touch " + str(self.proof).encode() + b"'\ntR."
        yield (
            "json",
            json.dumps(
                {
                    "lc": 2,
                    "type": "constructor",
                    "id": ["os", "system"],
                    "args": [f"touch {self.proof}"],
                }
            ).encode(),
        )
        yield "bytes", b"x"


def waiting_run(path):
    text = "name: ask\nsteps:\n  a: {instruction: x, on_uncertain: human, input: {text: odd}}\n"
    workflow = compile_workflow(parse_spec(text), ShoutingRunner(), Documents())
    with RunStore(path) as store:
        assert start(workflow, {}, store=store, run_id="r").status == "waiting"
    return workflow


@pytest.mark.parametrize("index", range(9))
@pytest.mark.parametrize("table", ["checkpoints", "writes"])
def test_a_tampered_checkpoint_is_an_error_and_runs_nothing(tmp_path, path, table, index):
    workflow = waiting_run(path)
    proof = tmp_path / "proof"
    kind, blob = list(Planted(proof).blobs())[index]
    column = "checkpoint" if table == "checkpoints" else "value"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(f"UPDATE {table} SET type = ?, {column} = ?", (kind, blob))
    with RunStore(path) as store, pytest.raises(CheckpointError):
        resume(workflow, "r", "counter", store=store)
    assert not proof.exists()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE checkpoints SET metadata = 'not json'",
        "UPDATE checkpoints SET checkpoint = NULL, type = 'null'",
        "UPDATE checkpoints SET checkpoint = x'80'",
        "UPDATE runs SET inputs = '{'",
        "UPDATE runs SET spec_digest = 'other'",
        "UPDATE step_results SET record = '{'",
        "DROP TABLE step_results",
        "DROP TABLE writes; CREATE TABLE writes (a)",
    ],
)
def test_a_damaged_record_is_a_clear_error(path, statement):
    with RunStore(path) as store:
        start(chain(ShoutingRunner(fail={"A+B+C": 1})), INPUTS, store=store, run_id="r")
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.executescript(statement)
    if statement.startswith("DROP TABLE step_results"):
        with RunStore(path) as store:
            assert resume(chain(), "r", store=store).status == "done"
        return
    with RunStore(path) as store, pytest.raises(CheckpointError):
        resume(chain(), "r", store=store)


@pytest.mark.parametrize("keep", [0.0, 0.05, 0.3, 0.6, 0.95])
def test_a_truncated_database_is_a_clear_error(path, keep):
    workflow = waiting_run(path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises((CheckpointError, InputError)), RunStore(path) as store:
        resume(workflow, "r", "counter", store=store)


def test_a_file_that_is_no_database_is_a_clear_error(path):
    path.write_bytes(b"this is not a database, it only has its name" * 100)
    with pytest.raises(CheckpointError, match="damaged"):
        RunStore(path)


def test_the_serializer_keeps_plain_data_sets_and_interrupts_only():
    serializer = StrictSerializer()
    value = {"a": [1, 2.5, None, True, "x"], "b": {"c": {"seen", "too"}}}
    assert serializer.loads_typed(serializer.dumps_typed(value)) == value
    asked = Interrupt(value={"q": 1}, id="i")
    assert serializer.loads_typed(serializer.dumps_typed(asked)) == asked
    for other in (Path("/etc"), ValueError, object):
        with pytest.raises((CheckpointError, TypeError)):
            serializer.loads_typed(JsonPlusSerializer().dumps_typed({"x": other}))


# ---------------------------------------------------------------- the store itself


def test_run_ids_are_short_and_sort_by_time():
    ids = [new_run_id() for _ in range(50)]
    assert len(set(ids)) == 50
    assert all(len(run_id) == 13 for run_id in ids)
    stamps = [run_id[:9] for run_id in ids]
    assert stamps == sorted(stamps)


def test_a_result_is_recorded_once_and_the_first_one_stays(path):
    with RunStore(path) as store:
        run_id = store.create(
            workflow="w", spec="", spec_digest="", inputs={}, skills={}, backbone=""
        )
        assert store.add_result(run_id, "s", None, {"output": 1}) == {"output": 1}
        assert store.add_result(run_id, "s", None, {"output": 2}) == {"output": 1}
        assert store.results(run_id, "s") == {None: {"output": 1}}
        assert len(store.show(run_id).steps) == 1


def test_run_ids_are_checked_and_never_reused(path):
    with RunStore(path) as store:
        start(chain(), INPUTS, store=store, run_id="r")
        with pytest.raises(InputError, match="already"):
            start(chain(), INPUTS, store=store, run_id="r")
        with pytest.raises(InputError, match="not a run id"):
            start(chain(), INPUTS, store=store, run_id="../r")
        with pytest.raises(InputError, match="no run 'other'"):
            store.show("other")
        start(chain(), INPUTS, store=store, run_id="s")
        assert [record.id for record in store.list()] == ["s", "r"]
