"""A skill as the reranker: its head points at evidence, which is what a search looks for."""

from __future__ import annotations

import numpy as np

from agentkit.engine.engine import Engine
from agentkit.errors import SkillError
from agentkit.prompt import renumber, skill_prompt
from agentkit.retrieval.rerank import DEPTH, Candidates, first_order, with_rest
from agentkit.skill.folder import Skill
from agentkit.skill.manifest import ChoiceAnswer
from agentkit.types import PromptSpan, Request, Vectors


class SkillReranker:
    """Stateful: loads its skill into the engine at the first query.

    The skill reads the best `depth` passages of the first search in one prompt, in the document's
    order, and the probabilities of its evidence head are their scores. Any skill serves that picks
    a choice with evidence and takes, beside its document, one text: the query.
    """

    def __init__(self, engine: Engine, skill: Skill, *, depth: int = DEPTH) -> None:
        """Raises SkillError for a skill of another kind."""
        self._engine = engine
        self._skill = skill
        self._depth = depth
        self._field = _query_field(skill)

    def scores(self, query: str, candidates: Candidates) -> Vectors:
        """See `Reranker`. Raises the engine's error where the passages do not fit its context."""
        order = first_order(candidates)
        read = np.sort(order[: self._depth])
        if not len(read):
            return np.zeros(0, dtype=np.float32)
        manifest = self._skill.manifest
        chunks = [candidates.chunks[i] for i in read]
        spans = renumber([PromptSpan(0, c.document, c.start, c.end, c.text) for c in chunks])
        given = {self._field: query, str(manifest.retrieval.document): ""}
        prompt = skill_prompt(self._engine.frame, manifest, given, spans)
        self._engine.load(self._skill)
        request = Request(self._engine.encode(prompt), adapter=self._skill.digest, read=True)
        (completion,) = self._engine.run([request])
        if isinstance(completion, Exception):
            raise completion
        evidence = None if completion.reading is None else completion.reading.evidence
        if evidence is None:
            raise _unfit(self._skill, "its head does not point at evidence")
        return with_rest(order, read, evidence)


def _query_field(skill: Skill) -> str:
    manifest = skill.manifest
    answer = manifest.answer
    if not isinstance(answer, ChoiceAnswer) or answer.evidence_field is None:
        raise _unfit(skill, "it does not pick a choice with evidence")
    if manifest.retrieval.document is None:
        raise _unfit(skill, "it reads no document")
    fields = set(manifest.input.get("required", ())) - {manifest.retrieval.document}
    if len(fields) != 1:
        raise _unfit(skill, f"beside the document it needs {len(fields)} inputs, not one")
    return str(fields.pop())


def _unfit(skill: Skill, why: str) -> SkillError:
    return SkillError(
        f"this skill cannot rerank: {why}",
        where=f"skill {skill.name}",
        hint="name a skill that judges a text against a document and points at its evidence",
    )
