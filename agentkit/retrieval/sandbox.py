"""Reading a file in a child process, so that no file can take this one down."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import agentkit
from agentkit.errors import DocumentError
from agentkit.retrieval.codec import document_from_json
from agentkit.retrieval.reader import OUT_OF_MEMORY
from agentkit.settings import Settings
from agentkit.types import Document

# `-P` and the appended root: a module in the working directory cannot stand in for a library.
_BOOTSTRAP = (
    "import sys; sys.path.append(sys.argv.pop(1)); "
    "from agentkit.retrieval.reader import main; sys.exit(main(sys.argv[1:]))"
)
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "PYTHONIOENCODING": "utf-8",
}
_MAX_WHERE = 200


def read_in_child(path: Path, *, settings: Settings) -> Document:
    """The document in the file, read by a child process with limits on time and memory.

    Raises:
        DocumentError: the file cannot be read, or the child ran out of time or memory or crashed.
    """
    seconds = settings.document_seconds
    root = Path(agentkit.__file__).resolve().parents[1]
    # A name in another encoding cannot be written where the document's name stands.
    name = os.fsencode(path.name).decode("utf-8", "replace")
    command = [
        *(sys.executable, "-P", "-c", _BOOTSTRAP, str(root)),
        *(str(path), name, str(settings.document_max_bytes)),
        *(str(settings.document_memory_bytes), str(seconds)),
    ]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | _ENVIRONMENT,
        start_new_session=True,
    )
    try:
        answer, complaint = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        raise DocumentError(
            f"reading it took longer than {seconds:g} seconds",
            where=str(path),
            hint="raise AGENTKIT_DOCUMENT_SECONDS or split the file",
        ) from None
    finally:
        _end(process)
    if process.returncode != 0:
        raise _failure(path, process.returncode, complaint, settings)
    return _document(answer, path)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the child if it still runs, and leave neither a zombie nor an open pipe."""
    if process.poll() is None:
        process.kill()
        process.wait()
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


def _failure(path: Path, status: int, complaint: bytes, settings: Settings) -> DocumentError:
    memory = settings.document_memory_bytes
    last = complaint.decode("utf-8", "replace").strip().rsplit("\n", 1)[-1][:_MAX_WHERE]
    starved = status == OUT_OF_MEMORY or "MemoryError" in last or "failed to map" in last
    if starved or status == -signal.SIGKILL:
        return DocumentError(
            f"reading it takes more than {memory:,} bytes of memory",
            where=str(path),
            hint="raise AGENTKIT_DOCUMENT_MEMORY_BYTES or split the file",
        )
    if status == -signal.SIGXCPU:
        return DocumentError(
            f"reading it took longer than {settings.document_seconds:g} seconds",
            where=str(path),
            hint="raise AGENTKIT_DOCUMENT_SECONDS or split the file",
        )
    if status < 0:
        last = f"killed by {signal.Signals(-status).name}"
    return DocumentError(
        f"its reader failed: {last or f'status {status}'}",
        where=str(path),
        hint="the file is probably damaged; save it again or convert it to text",
    )


def _document(answer: bytes, path: Path) -> Document:
    try:
        value = json.loads(answer)
    except ValueError as error:
        raise DocumentError(
            f"its reader answered nothing sensible: {error}",
            where=str(path),
            hint="the file is probably damaged; save it again or convert it to text",
        ) from error
    if "error" in value:
        problem = value["error"]
        raise DocumentError(problem["what"], where=str(path), hint=problem["hint"])
    return document_from_json(value["document"], where=str(path))
