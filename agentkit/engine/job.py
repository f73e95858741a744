"""A request on its way through the engine."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field

from agentkit.adapters.heads import SpanLabelHead
from agentkit.engine.backbone import Backbone
from agentkit.engine.decoding import Constraint, Grammars
from agentkit.engine.install import LoadedSkill
from agentkit.engine.scheduler import SHARED_LEAST, GroupKey, Kind, Waiting
from agentkit.errors import AdapterError, EngineError, LimitError
from agentkit.types import Completion, Request


@dataclass(eq=False, slots=True)
class Job:
    """Stateful: a checked request and the future that waits for its completion.

    The future stays pending until it is settled, so its caller can cancel it at any moment.
    """

    request: Request
    skill: LoadedSkill | None
    waiting: Waiting
    max_tokens: int
    """To generate, at most."""
    choices: tuple[tuple[int, ...], ...] = ()
    """Token ids of each choice to score."""
    constraint: Constraint | None = None
    """Where the output is in its grammar, if it has a schema."""
    future: Future[Completion] = field(default_factory=Future)

    @property
    def shared(self) -> tuple[int, ...]:
        return self.waiting.key.prefix

    @property
    def branch(self) -> tuple[int, ...]:
        """Token ids after the shared prefix."""
        return self.request.prompt.ids[len(self.shared) :]

    @property
    def withdrawn(self) -> bool:
        return self.future.cancelled()

    def finish(self, completion: Completion) -> None:
        if self.future.set_running_or_notify_cancel():
            self.future.set_result(completion)

    def fail(self, error: BaseException) -> None:
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)


def make_job(
    request: Request, skill: LoadedSkill | None, backbone: Backbone, grammars: Grammars
) -> Job:
    """Check a request against the backbone's limits and compile its schema, in any thread.

    Raises `LimitError` for a prompt or an answer that cannot fit the context, `AdapterError` for a
    reading without a task head, `SkillError` for a schema that cannot constrain.
    """
    prompt, total = request.prompt, len(request.prompt.ids)
    if total == 0:
        raise LimitError("the prompt is empty")
    if total > backbone.context:
        raise LimitError(
            f"the prompt has {total} tokens, the backbone's context {backbone.context}",
            hint="give less context (retrieval.window, retrieval.budget) or a shorter input",
        )
    head = skill.head if skill else None
    kind: Kind = "generate"
    shared, taken, max_tokens = prompt.question_start, total, 0
    choices: tuple[tuple[int, ...], ...] = ()
    constraint = None
    if request.read:
        kind = "read"
        if head is None:
            who = f"skill {skill.name}" if skill else "the bare backbone"
            raise AdapterError("has no task head to read", where=who)
        if isinstance(head, SpanLabelHead):
            shared = taken = prompt.document_end
    elif request.choices is not None:
        kind = "score"
        choices = _choice_ids(request.choices, backbone)
        taken += sum(map(len, choices))
        if (longest := total + max(map(len, choices))) > backbone.context:
            raise LimitError(
                f"prompt and choice have {longest} tokens, the context {backbone.context}"
            )
    else:
        max_tokens = _answer_limit(request, total, backbone)
        if request.schema is not None:
            constraint = grammars.constraint(request.schema, max_tokens)
    if kind != "read":
        # A short prefix is not worth a forward of its own, and without it any prompts go together.
        shared = shared if shared >= SHARED_LEAST else 0
        shared = min(shared, total - 1)  # something must be left whose next token is wanted
    key = GroupKey(kind, request.adapter, prompt.ids[:shared])
    return Job(request, skill, Waiting(key, taken - shared), max_tokens, choices, constraint)


def _answer_limit(request: Request, total: int, backbone: Backbone) -> int:
    wanted = request.generation.max_tokens
    if not 0 < wanted <= backbone.context:
        raise LimitError(
            f"max_tokens is {wanted}; it must be from 1 to the context's {backbone.context}"
        )
    if total >= backbone.context:
        raise LimitError(
            f"the prompt fills the whole context of {backbone.context} tokens",
            hint="give less context, so that an answer fits",
        )
    return min(wanted, backbone.context - total)


def _choice_ids(choices: tuple[str, ...], backbone: Backbone) -> tuple[tuple[int, ...], ...]:
    ids = [tuple(backbone.tokenizer.plain(choice)) for choice in choices]
    if not ids or not all(ids):
        raise EngineError("choices to score must be non-empty texts")
    if len(set(ids)) != len(ids):
        raise EngineError("choices to score must differ")
    begins_another = any(a != b and b[: len(a)] == a for a in ids for b in ids)
    if begins_another and backbone.eos_ids:
        # Otherwise a choice would be given the likelihood of every longer one that begins with it.
        ids = [(*choice, min(backbone.eos_ids)) for choice in ids]
    return tuple(ids)
