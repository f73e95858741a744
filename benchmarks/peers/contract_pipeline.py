"""The contract review as a competent user would write it: a plain LangGraph over PEFT adapters.

Same backbone, adapters, heads, prompts, windows and schemas as the product; everything else is
what transformers, PEFT, llguidance and LangGraph document: `set_adapter` between steps, the prefix
of many questions prefilled once and its cache copied for each, batches padded on the left for
`generate`, a logits processor for the schema.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

import torch
from langgraph.graph import END, START, StateGraph
from llguidance import LLMatcher
from llguidance.hf import from_tokenizer
from llguidance.torch import (
    allocate_token_bitmask,
    apply_token_bitmask_inplace,
    fill_next_token_bitmask,
)
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, LogitsProcessor

from agentkit.adapters.heads import (
    KIND,
    LinearProbe,
    build_head,
    question_features,
    span_features,
    token_features,
)
from agentkit.output import generation_schema, to_output
from agentkit.prompt import (
    encode_prompt,
    frame_of,
    number_spans,
    skill_prompt,
    span_lengths,
    windows,
)
from agentkit.retrieval.retriever import Retriever
from agentkit.skill.folder import Skill, load_skill
from agentkit.skill.schema import with_choice
from agentkit.types import Completion, Document, EncodedPrompt, PromptSpan, Reading, Usage

BATCH = 8


class State(TypedDict, total=False):
    """What the graph carries."""

    document: Document
    rules: list[str]
    parsed: dict[str, Any]
    reviews: list[dict[str, Any]]
    statements: list[dict[str, Any]]


class Pipeline:
    """Stateful: one model with three adapters, of which one is active."""

    def __init__(
        self,
        backbone: Path,
        skills: dict[str, Path],
        retriever: Retriever,
        *,
        dtype: torch.dtype,
        window: int,
        explained: int,
    ) -> None:
        """`skills` are the folders for the steps `parse`, `review` and `explain`."""
        self.tokenizer = AutoTokenizer.from_pretrained(backbone, local_files_only=True)
        self.tokenizer.padding_side = "left"
        self.tokenizer.pad_token_id = self.tokenizer.eos_token_id
        base = AutoModelForCausalLM.from_pretrained(backbone, dtype=dtype, local_files_only=True)
        self.skills: dict[str, Skill] = {name: load_skill(at) for name, at in skills.items()}
        first, *others = skills
        self.model: Any = PeftModel.from_pretrained(base, skills[first], adapter_name=first)
        for name in others:
            self.model.load_adapter(skills[name], adapter_name=name)
        self.model.eval()
        self.heads = {name: _head(at) for name, at in skills.items()}
        self.frame = frame_of(self.tokenizer)
        self.retriever = retriever
        self.window, self.explained = window, explained
        self.grammar = from_tokenizer(self.tokenizer, n_vocab=base.config.vocab_size)
        graph = StateGraph(State)
        for name in ("parse", "review", "explain"):
            graph.add_node(name, getattr(self, name))
        graph.add_edge(START, "parse")
        graph.add_edge("parse", "review")
        graph.add_edge("review", "explain")
        graph.add_edge("explain", END)
        self.graph = graph.compile()

    @torch.inference_mode()
    def run(self, document: Document, rules: Sequence[str]) -> State:
        """The state when the graph has ended."""
        return self.graph.invoke({"document": document, "rules": list(rules)})

    # ------------------------------------------------------------ steps

    def parse(self, state: State) -> State:
        self.model.set_adapter("parse")
        manifest, document = self.skills["parse"].manifest, state["document"]
        spans = number_spans(document)
        size = manifest.retrieval.window or self.window
        answers = []
        for shown in windows(spans, span_lengths(self.tokenizer, spans), size):
            encoded = self._encode("parse", {"document": document.text}, shown)
            hidden = self._hidden(encoded.ids[: encoded.document_end])
            tokens = [at for at, _, _ in encoded.token_offsets]
            labels, inner = self.heads["parse"](
                span_features(hidden, encoded.span_ends, tokens),
                token_features(hidden, tokens, encoded.span_ends),
            )
            reading = Reading(
                span_labels=labels.sigmoid().numpy(), token_labels=inner.sigmoid().numpy()
            )
            answers.append((encoded, Completion(usage=Usage(), reading=reading)))
        return {"parsed": to_output(manifest, answers)}

    def review(self, state: State) -> State:
        self.model.set_adapter("review")
        manifest, document = self.skills["review"].manifest, state["document"]
        defaults = manifest.retrieval
        spans = number_spans(document)
        pieces = windows(spans, span_lengths(self.tokenizer, spans), defaults.window or self.window)
        stretches = [(piece[0].start, piece[-1].end) for piece in pieces]
        asked: dict[int, list[str]] = {number: [] for number in range(len(pieces))}
        for rule in state["rules"]:
            most = defaults.windows or len(pieces)
            for number in self.retriever.best_stretches(document, rule, stretches, most=most):
                asked[number].append(rule)
        answers: dict[str, list[Any]] = {rule: [] for rule in state["rules"]}
        for number, rules in asked.items():
            read: tuple[torch.Tensor, DynamicCache] | None = None
            for rule in rules:
                encoded = self._encode("review", {"rule": rule}, pieces[number])
                if read is None:
                    read = self._prefill(encoded.ids[: encoded.question_start])
                answers[rule].append((encoded, self._judged(encoded, *read)))
        return {
            "reviews": [{"rule": rule, **to_output(manifest, answers[rule])} for rule in answers]
        }

    def _judged(
        self, encoded: EncodedPrompt, hidden: torch.Tensor, cache: DynamicCache
    ) -> Completion:
        """The task head's answer to one question after a prefix that was read."""
        asked = self._hidden(encoded.ids[encoded.question_start :], copy.deepcopy(cache))
        tokens = [at for at, _, _ in encoded.token_offsets]
        choice, evidence = self.heads["review"](
            question_features(asked)[None], span_features(hidden, encoded.span_ends, tokens)
        )
        reading = Reading(
            choices=choice[0].softmax(-1).numpy(), evidence=evidence[0].sigmoid().numpy()
        )
        return Completion(usage=Usage(), reading=reading)

    def explain(self, state: State) -> State:
        self.model.set_adapter("explain")
        facts = {fact["name"] for fact in state["parsed"]["facts"]}
        clauses = [c for c in state["parsed"]["clauses"] if c["category"] not in facts]
        clauses.sort(key=lambda clause: -clause["score"])
        inputs = [{k: c[k] for k in ("category", "quote")} for c in clauses[: self.explained]]
        inputs += [
            {
                "rule": review["rule"],
                "verdict": review["verdict"],
                "quote": " ".join(e["quote"] for e in review["evidence"]),
            }
            for review in state["reviews"]
        ]
        statements = []
        for start in range(0, len(inputs), BATCH):
            statements += self._write(inputs[start : start + BATCH])
        return {"statements": statements}

    # ------------------------------------------------------------ the model

    def _encode(
        self, step: str, input: dict[str, Any], spans: Sequence[PromptSpan]
    ) -> EncodedPrompt:
        prompt = skill_prompt(self.frame, self.skills[step].manifest, input, spans)
        return encode_prompt(self.tokenizer, prompt)

    def _decoder(self) -> Any:
        return self.model.get_base_model().model

    def _hidden(self, ids: Sequence[int], cache: DynamicCache | None = None) -> torch.Tensor:
        output = self._decoder()(
            input_ids=torch.tensor([ids]), past_key_values=cache, use_cache=cache is not None
        )
        return output.last_hidden_state[0]

    def _prefill(self, ids: Sequence[int]) -> tuple[torch.Tensor, DynamicCache]:
        cache = DynamicCache()
        return self._hidden(ids, cache), cache

    def _write(self, inputs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        manifest = self.skills["explain"].manifest
        encoded = [self._encode("explain", one, ()) for one in inputs]
        prompts = [one.ids for one in encoded]
        longest = max(map(len, prompts))
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (longest - len(p)) + list(p) for p in prompts])
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
        # Each answer may hold the names and numbers of its own prompt alone.
        schemas = [generation_schema(manifest, one.prompt) or {} for one in encoded]
        field, read = manifest.answer.choice_field, {}
        if field is not None and not all(one.prompt.chosen for one in encoded):
            # The prompts are read once: for the head, then for what is written of its choice.
            cache, head = DynamicCache(), self.heads["explain"]
            probes = isinstance(head, LinearProbe)
            found = self._decoder()(
                input_ids=ids,
                attention_mask=mask,
                position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
                past_key_values=cache,
                output_hidden_states=probes,
            )
            hidden = found.hidden_states[head.reads] if probes else found.last_hidden_state
            asked = [
                states[one.question_start - len(one.ids) :]
                for states, one in zip(hidden, encoded, strict=True)
            ]
            if probes:
                read_ids = [one.ids[one.question_start :] for one in encoded]
                pairs = zip(asked, read_ids, strict=True)
                chosen = head(torch.stack([head.features(*pair) for pair in pairs])).argmax(-1)
            else:
                questions = torch.stack([*map(question_features, asked)])
                chosen = head(questions, span_features(hidden[0], (), ()))[0].argmax(-1)
            schemas = [
                with_choice(schema, field, one.prompt.chosen or manifest.head_choices[int(at)])
                for schema, at, one in zip(schemas, chosen, encoded, strict=True)
            ]
            cache.crop(-1)  # `generate` reads the last token again
            read = {"past_key_values": cache}
        output = self.model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=manifest.generation.max_tokens,
            do_sample=False,
            pad_token_id=pad,
            logits_processor=[_Schema(self.grammar, [*map(json.dumps, schemas)], longest)],
            **read,
        )
        texts = self.tokenizer.batch_decode(output[:, longest:], skip_special_tokens=True)
        return [_parsed(text) for text in texts]


class _Schema(LogitsProcessor):
    """Stateful: where each row of a batch is in the grammar."""

    def __init__(self, tokenizer: Any, schemas: Sequence[str], start: int) -> None:
        """`schemas` has one for each row."""
        options = {"whitespace_flexible": False}
        self._rows = [
            LLMatcher(tokenizer, LLMatcher.grammar_from_json_schema(schema, defaults=options))
            for schema in schemas
        ]
        self._mask = allocate_token_bitmask(len(schemas), tokenizer.vocab_size)
        self._seen = start

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if input_ids.shape[1] > self._seen:
            for row, matcher in enumerate(self._rows):
                if not matcher.is_stopped():
                    matcher.consume_token(int(input_ids[row, -1]))
            self._seen = input_ids.shape[1]
        for row, matcher in enumerate(self._rows):
            fill_next_token_bitmask(matcher, self._mask, row)
        apply_token_bitmask_inplace(scores, self._mask)
        return scores


def _parsed(text: str) -> dict[str, Any]:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return {"unfinished": text}


def _head(folder: Path) -> Any:
    path = folder / "head.safetensors"
    if not path.exists():
        return None
    with safe_open(path, framework="pt") as file:
        kind = file.metadata()[KIND]
    return build_head(kind, load_file(path), where=str(path))
