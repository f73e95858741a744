"""A request on its way through the engine."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import count

from agentkit.adapters.heads import ChoiceHead, LinearProbe, SpanLabelHead
from agentkit.engine.backbone import Backbone
from agentkit.engine.decoding import Constraint, Grammars
from agentkit.engine.install import LoadedSkill
from agentkit.engine.packed import Piece
from agentkit.engine.reading import scope
from agentkit.engine.scheduler import SHARED_LEAST, Kind, TreeKey, Waiting
from agentkit.errors import AdapterError, AgentkitError, EngineError, LimitError
from agentkit.skill.schema import with_choice
from agentkit.types import Completion, EncodedPrompt, Reading, Request

_APART = 256
"""Tokens from which a row without a prefix is kept from others: each would see through masks."""
_apart = count(1)


@dataclass(eq=False, slots=True)
class Job:
    """Stateful: a checked request and the future that waits for its completion.

    The future stays pending until it is settled, so its caller can cancel it at any moment.
    """

    request: Request
    skill: LoadedSkill | None
    kind: Kind
    waiting: Waiting
    stem: int
    """Tokens after the shared prefix that are the same for all questions to one skill."""
    max_tokens: int
    """To generate, at most."""
    choices: tuple[tuple[int, ...], ...] = ()
    """Token ids of each choice to score."""
    constraint: Constraint | None = None
    """Where the output is in its grammar, if it has a schema."""
    narrowed: Callable[[int], Constraint] | None = None
    """Makes the constraint of what is written once the head has chosen, by the choice's number."""
    reading: Reading | None = None
    """What the head said of a job that is written afterwards."""
    future: Future[Completion] = field(default_factory=Future)

    @property
    def key(self) -> TreeKey:
        return self.waiting.key

    @property
    def slot(self) -> int | None:
        """What acts on the tokens that it writes."""
        return self.skill.slot if self.skill else None

    @property
    def stem_end(self) -> int:
        return len(self.key.prefix) + self.stem

    @property
    def branch(self) -> tuple[Piece, ...]:
        """Token ids after the stem, and what acts on them."""
        ids, start = self.request.prompt.ids, self.stem_end
        if self.skill is None or not self.skill.starts_at_invocation:
            return ((self.slot, ids[start:]),)
        acts = max(start, self.request.prompt.invocation_start)
        return ((None, ids[start:acts]), (self.slot, ids[acts:]))

    @property
    def branch_length(self) -> int:
        return len(self.request.prompt.ids) - self.stem_end

    @property
    def probe(self) -> LinearProbe | None:
        """What chooses by the states below the adapter, if that is how it is read."""
        head = self.skill.head if self.skill and self.kind == "read" else None
        return head if isinstance(head, LinearProbe) else None

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
    virtual = skill.virtual_tokens if skill else 0
    context = backbone.context - virtual
    room = f"{context}, because the skill's prefix takes {virtual}" if virtual else f"{context}"
    if total > context:
        raise LimitError(
            f"the prompt has {total} tokens, the backbone's context {room}",
            hint="give less context (retrieval.window, retrieval.budget) or a shorter input",
        )
    head = skill.head if skill else None
    kind: Kind = "generate"
    max_tokens = 0
    choices: tuple[tuple[int, ...], ...] = ()
    constraint = narrowed = None
    if request.read:
        kind = "read"
        if head is None:
            who = f"skill {skill.name}" if skill else "the bare backbone"
            raise AdapterError("has no task head to read", where=who)
    elif request.choices is not None:
        kind = "score"
        choices = _choice_ids(request.choices, backbone)
        if (longest := total + max(map(len, choices))) > context:
            raise LimitError(f"prompt and choice have {longest} tokens, the context {room}")
    else:
        max_tokens = _answer_limit(request, total, context)
        if isinstance(head, ChoiceHead | LinearProbe) and request.choice_field is not None:
            kind = "read"
            narrowed = _narrowing(request, grammars, max_tokens)
        elif request.schema is not None:
            constraint = grammars.constraint(request.schema, max_tokens)
    prefix, stem = _layout(prompt, kind, skill)
    if kind == "read" and isinstance(head, LinearProbe) and total == prefix + stem:
        raise EngineError("a probe has no words of a question to read")
    taken = 0
    if not (kind == "read" and isinstance(head, SpanLabelHead)):
        taken = total - prefix - stem + sum(map(len, choices))
    apart = next(_apart) if not prefix and taken >= _APART else 0
    whose = scope(skill)
    if not prefix and (skill is None or skill.prefix_states is None):
        whose = None  # without a prefix nothing of an adapter's is shared, and any rows go together
    key = TreeKey(whose, prompt.ids[:prefix], apart)
    waiting = Waiting(key, taken, brief=max_tokens == 0)
    return Job(request, skill, kind, waiting, stem, max_tokens, choices, constraint, narrowed)


def _narrowing(
    request: Request, grammars: Grammars, max_tokens: int
) -> Callable[[int], Constraint]:
    """What makes the constraint of a request whose field `choice_field` has been chosen."""
    schema, field = request.schema or {}, request.choice_field or ""
    choices = schema.get("properties", {}).get(field, {}).get("enum", ())

    def narrowed(choice: int) -> Constraint:
        return grammars.constraint(with_choice(schema, field, choices[choice]), max_tokens)

    return narrowed


def _layout(prompt: EncodedPrompt, kind: Kind, skill: LoadedSkill | None) -> tuple[int, int]:
    """Tokens of the prefix that rows share, and of the stem that questions to one skill share.

    A short prefix is not worth a forward of its own, so there it is a stem, which is computed
    together with the first question.
    """
    document, question = prompt.document_end, prompt.question_start
    if skill is not None and skill.starts_at_invocation:
        question = min(question, prompt.invocation_start)
        document = min(document, question)
    if kind == "read":  # heads read the document's states apart from the question's
        return document, question - document
    question = min(question, len(prompt.ids) - 1)  # something must be left to be continued
    if SHARED_LEAST <= document < question:
        return document, question - document
    return (question, 0) if question >= SHARED_LEAST else (0, question)


def _answer_limit(request: Request, total: int, context: int) -> int:
    wanted, generation = request.generation.max_tokens, request.generation
    for name in ("beams", "beams_if_stuck"):
        beams = getattr(generation, name)
        if beams < 1 or (beams > 1 and generation.temperature > 0):
            raise LimitError(f"{name} is {beams}; it must be 1 or, at temperature 0, more")
    if not 0 < wanted <= context:
        raise LimitError(f"max_tokens is {wanted}; it must be from 1 to the context's {context}")
    if total >= context:
        raise LimitError(
            f"the prompt fills the whole context of {context} tokens",
            hint="give less context, so that an answer fits",
        )
    return min(wanted, context - total)


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


def as_ours(error: BaseException) -> AgentkitError:
    """The error, as one of agentkit's own."""
    if isinstance(error, AgentkitError):
        return error
    wrapped = EngineError(f"{type(error).__name__}: {error}")
    wrapped.__cause__ = error
    return wrapped
