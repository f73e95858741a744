"""Every error that agentkit raises on purpose.

AgentkitError
├── InputError                 something the caller gave is wrong: exit code 2
│   ├── DocumentError          a file could not be read as a document
│   ├── SkillError             a skill folder fails a check
│   │   └── AdapterError       its adapter's weights or config do
│   ├── WorkflowError          a workflow file or builder call (file:line:column)
│   │   └── ExpressionError    an expression in it
│   ├── ModelError             a backbone or encoder cannot be found, fetched or trusted
│   ├── LimitError             more was asked for than a limit allows
│   └── MissingExtraError      an optional dependency is not installed
├── RouteError                 no skill fits the step and the step says `fail`
├── OutputError                a completion does not meet the skill's output schema
├── EngineError                the engine could not finish a request
│   └── CancelledError         because its caller withdrew it
└── RunError                   a workflow run could not go on
    └── CheckpointError        its checkpoint cannot be trusted

A message says what failed, where (skill, step, file:line:column), and what to do next.
"""

from __future__ import annotations


class AgentkitError(Exception):
    """Base of all errors of this package.

    `where` names the place (a path, `file:line:column`, a skill or a step); `hint` what to do next.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str | None = None, hint: str | None = None) -> None:
        self.what = what
        self.where = where
        self.hint = hint
        super().__init__(what, where, hint)

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text} ({self.hint})" if self.hint else text


class InputError(AgentkitError):
    """Something the caller gave is wrong."""

    exit_code = 2


class DocumentError(InputError):
    """A file could not be read as a document."""


class SkillError(InputError):
    """A skill folder fails a check."""


class AdapterError(SkillError):
    """A skill's adapter weights or adapter config fail a check."""


class WorkflowError(InputError):
    """A workflow is malformed; `where` is `file:line:column` when it came from YAML."""


class ExpressionError(WorkflowError):
    """An expression of a workflow is malformed, unsafe, or failed on its values."""


class ModelError(InputError):
    """A backbone or encoder cannot be found, fetched or trusted."""


class LimitError(InputError):
    """More was asked for than a limit allows (context length, tokens, file size)."""


class MissingExtraError(InputError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}",
            hint=f'install it with: pip install "agentkit-skills[{extra}]"',
        )


class RouteError(AgentkitError):
    """No skill fits the step, and the step says to fail then."""


class OutputError(AgentkitError):
    """A completion does not meet the skill's output schema."""


class EngineError(AgentkitError):
    """The engine could not finish a request."""


class CancelledError(EngineError):
    """The request was withdrawn by its caller."""


class RunError(AgentkitError):
    """A workflow run could not go on."""


class CheckpointError(RunError):
    """A run's checkpoint is damaged, tampered with, or of another workflow."""
