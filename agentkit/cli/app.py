"""The command tree and the one place where errors become exit codes."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Sequence

import typer
from typer.exceptions import TyperException

from agentkit.cli import (
    advise,
    authoring,
    calibrate,
    controller,
    evaluation,
    index,
    models,
    runs,
    skills,
    training,
    tune,
    workflows,
)
from agentkit.cli.output import say
from agentkit.errors import AgentkitError

INTERRUPTED = 130
FAILURE = 1
BAD_INPUT = 2

_RUN = "interrupted; a run that had begun goes on with: agentkit runs resume (see runs ls)"
_TRAINING = "interrupted; the same command goes on where the training was"
_GOES_ON = {"run": _RUN, "runs": _RUN, "train": _TRAINING}
"""What an interrupted command leaves, to be gone on with."""

app = typer.Typer(
    name="agentkit",
    help="Many narrow, measured skills out of one small open model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
workflows.register(app)
controller.register(app)
evaluation.register(app)
training.register(app)
calibrate.register(app)
tune.register(app)
advise.register(app)
authoring.register(skills.app)
app.add_typer(skills.app, name="skills")
app.add_typer(models.app, name="models")
app.add_typer(index.app, name="index")
app.add_typer(runs.app, name="runs")


def _version(value: bool) -> None:
    if value:
        from agentkit import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", help="Print the version.", callback=_version, is_eager=True
    ),
) -> None:
    """Many narrow, measured skills out of one small open model."""


def run(arguments: Sequence[str]) -> int:
    """The exit code of a command line."""
    _quiet()
    try:
        result = app(list(arguments) or ["--help"], standalone_mode=False)
    except typer.Exit as exit_:
        return exit_.exit_code
    except (typer.Abort, KeyboardInterrupt):
        result = INTERRUPTED
    except TyperException as error:
        say(error.format_message(), label="error", style="red")
        return BAD_INPUT
    except AgentkitError as error:
        say(str(error), label="error", style="red")
        return error.exit_code
    except BrokenPipeError:
        # The reader of stdout has gone; nothing more can be said to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        say(_said_by_the_system(error), label="error", style="red")
        return FAILURE
    if result == INTERRUPTED:  # typer makes it of a KeyboardInterrupt
        say(_GOES_ON.get(next(iter(arguments), ""), "interrupted"))
    return result if isinstance(result, int) else 0


def _quiet() -> None:
    """Keep libraries' chatter and progress bars off the terminal."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TQDM_DISABLE", "1")
    warnings.filterwarnings("ignore")
    logger = logging.getLogger("agentkit")
    if not any(isinstance(handler, _Warnings) for handler in logger.handlers):
        logger.addHandler(_Warnings())


class _Warnings(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say(record.getMessage(), label=record.levelname.lower(), style="yellow")


def _said_by_the_system(error: OSError) -> str:
    reason = error.strerror or str(error)
    return f"{error.filename}: {reason}" if error.filename is not None else reason
