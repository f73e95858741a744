"""A retrieved chunk is data: it changes no token, route, schema or link, whatever it says.

`injections.jsonl` holds the chunks, one a line: commands, roles and special tokens of this and
other models, forged delimiters, requests for another skill, other schemas, and links.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from markdown_it import MarkdownIt

from agentkit.engine.engine import Engine
from agentkit.prompt import build_prompt, encode_prompt, frame_of, number_spans
from agentkit.report import build_report
from agentkit.report.html import to_html
from agentkit.report.markdown import to_markdown
from agentkit.retrieval.loaders import document_from_text
from agentkit.retrieval.retriever import Retriever
from agentkit.retrieval.store import FileDocumentStore
from agentkit.routing.controller import Controller
from agentkit.settings import Settings
from agentkit.skill.folder import load_skill
from agentkit.step import Runner
from agentkit.testing import FakeEncoder, TinyBackbone, tiny_adapter, tiny_tokenizer
from agentkit.types import ContextSpec, EncodedPrompt, Query, StepCall

ROWS = [
    json.loads(line)
    for line in (Path(__file__).parent / "injections.jsonl").read_text("utf-8").splitlines()
]
CASES = [pytest.param(row["text"], id=row["id"]) for row in ROWS]
TOKENIZER = tiny_tokenizer()
LEASE = "The tenant pays the rent on the first day of each month. The landlord repairs the roof."
QUESTION = "Who pays the rent?"
INSTRUCTIONS = "Answer the question."
ANSWER = {
    "type": "object",
    "properties": {
        "verdict": {"enum": ["yes", "no", "silent"]},
        "note": {"type": "string", "maxLength": 8},
    },
    "required": ["verdict", "note"],
    "additionalProperties": False,
}


def test_the_set_holds_at_least_fifty_distinct_injections_of_every_kind() -> None:
    assert len({row["text"] for row in ROWS}) == len(ROWS) >= 50
    kinds = {row["kind"] for row in ROWS}
    assert kinds == {"command", "role", "delimiter", "route", "schema", "link"}


# ---------------------------------------------------------------- tokens and delimiters


@pytest.fixture(scope="module")
def real_tokenizer() -> Any:
    from transformers import AutoTokenizer

    from agentkit import models

    settings = Settings()
    return AutoTokenizer.from_pretrained(models.resolve(settings.backbone, settings, "backbone"))


def check_tokens(tokenizer: Any, injection: str) -> None:
    frame = frame_of(tokenizer)
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)

    def encode(text: str, question: str = QUESTION) -> tuple[EncodedPrompt, int]:
        spans = number_spans(document_from_text(text))
        prompt = build_prompt(frame, instructions=INSTRUCTIONS, question=question, spans=spans)
        return encode_prompt(tokenizer, prompt), len(spans)

    clean, _ = encode(LEASE)
    start = len(tokenizer(frame.header, add_special_tokens=False)["input_ids"])
    attacked, count = encode(f"{LEASE} {injection} {LEASE}")
    data = attacked.ids[start : attacked.document_end]
    assert not special & set(data)
    # All that is not data is what it is without the injection, token for token.
    assert attacked.ids[:start] == clean.ids[:start]
    assert attacked.ids[attacked.document_end :] == clean.ids[clean.document_end :]
    # One line for each span, each with its own number: none is forged, and nothing closes the
    # document but its end.
    head, *lines, tail = tokenizer.decode(list(data)).split("\n")
    assert (head, tail) == ("Document:", "")
    assert [line.split(" ", 1)[0] for line in lines] == [f"[{n}]" for n in range(1, count + 1)]
    assert not any(re.search("[\r\f\v\x1c-\x1e\x85\u2028\u2029]", line) for line in lines)
    # The same text as a rule or a question has no more power.
    asked, _ = encode(LEASE, question=injection)
    assert not special & set(asked.ids[asked.document_end : asked.invocation_start])
    assert asked.ids[asked.invocation_start :] == clean.ids[clean.invocation_start :]


@pytest.mark.parametrize("injection", CASES)
def test_an_injection_adds_no_special_token_and_closes_no_delimiter(injection: str) -> None:
    check_tokens(TOKENIZER, injection)


@pytest.mark.weights
@pytest.mark.parametrize("injection", CASES)
def test_nor_does_it_with_the_tokens_of_the_backbone(real_tokenizer: Any, injection: str) -> None:
    check_tokens(real_tokenizer, injection)


# ---------------------------------------------------------------- route


@pytest.mark.weights
def test_the_route_is_the_same_with_and_without_the_injection() -> None:
    from agentkit.kit import Kit

    instructions = (
        "Find the clauses and facts of this contract.",
        "Check whether the document complies with this rule of the playbook.",
        "Explain in plain English what this clause means for the reader, and rate it.",
        "Bake a cake with three eggs.",
    )
    changed = []
    with Kit() as kit:
        controller = kit.controller()
        for instruction in instructions:
            excerpts = [LEASE]
            for row in ROWS:
                excerpts += [f"{row['text']} {LEASE}", f"{LEASE} {row['text']}", row["text"]]
            clean, *attacked = controller.route_many(
                [Query(instruction, excerpt[:400]) for excerpt in excerpts]
            )
            changed += [
                (instruction, excerpt, route.skill)
                for excerpt, route in zip(excerpts[1:], attacked, strict=True)
                if (route.skill, route.abstained) != (clean.skill, clean.abstained)
            ]
    assert changed == []


# ---------------------------------------------------------------- schema


@pytest.fixture(scope="module")
def runner(
    tmp_path_factory: pytest.TempPathFactory, tiny_backbone: TinyBackbone
) -> Iterator[Runner]:
    """Two skills on a tiny backbone, and a standing index `attacks` of every injection."""
    folder = tmp_path_factory.mktemp("injections")
    settings = Settings(
        home=folder / "home", backbone=str(tiny_backbone.path), dtype="float32", threads=1
    )
    manifest = {
        "input": {"type": "object", "properties": {"rule": {"type": "string"}}}
        | {"required": ["rule"]},
        "output": ANSWER,
        "prompt": {"question": "Rule: {{ rule }}"},
        "generation": {"max_tokens": 40},
    }
    utterances = {
        "rule-judge": ["is the rule kept in the paper", "check this rule"],
        "poem-writer": ["write a poem about the sea", "answer in verse"],
    }
    skills = {
        name: load_skill(
            tiny_adapter(
                folder / name,
                tiny_backbone,
                manifest=manifest | {"utterances": examples},
                layers=[2, 3],
            )
        )
        for name, examples in utterances.items()
    }
    store = FileDocumentStore(settings.documents_dir)
    retriever = Retriever(FakeEncoder(), settings, store)
    controller = Controller(FakeEncoder())
    controller.fit({n: (s.manifest.description, s.manifest.utterances) for n, s in skills.items()})
    documents = [document_from_text(row["text"], source=row["id"]) for row in ROWS]
    retriever.open_index("attacks", create=True).exchange(documents)
    with Engine.open(settings) as engine:
        yield Runner(
            skills,
            engine=engine,
            controller=controller,
            retriever=retriever,
            documents=store,
            settings=settings,
        )


def test_a_retrieved_injection_leaves_route_and_schema_as_they_are(runner: Runner) -> None:
    def call(context: ContextSpec | None) -> StepCall:
        return StepCall(
            step="check",
            instruction="check this rule",
            input={"rule": "is the rule kept in the paper"},
            context=context,
        )

    attacks = [
        call(ContextSpec(index="attacks", top_k=1, filters={"source": row["id"]})) for row in ROWS
    ]
    clean, *results = runner.run([call(None), *attacks])
    assert not isinstance(clean, Exception)
    for row, result in zip(ROWS, results, strict=True):
        assert not isinstance(result, Exception), (row, result)
        assert {citation.source for citation in result.citations} == {row["id"]}
        assert (result.skill, result.route) == ("rule-judge", clean.route)
        jsonschema.validate(result.output, ANSWER)


# ---------------------------------------------------------------- links


class _Links(HTMLParser):
    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.targets: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        names = ("href", "src", "action", "srcdoc", "data", "formaction")
        self.targets += [value or "" for name, value in attrs if name in names]
        assert not any(name.startswith("on") for name, _ in attrs)


@pytest.mark.parametrize("injection", CASES)
def test_nothing_in_a_retrieved_injection_is_a_link_in_the_report(injection: str) -> None:
    document = document_from_text(f"{LEASE}\n\n{injection}", source="lease.txt")
    start = len(LEASE) + 2
    place = {"start": start, "end": start + len(injection)}
    quote = {"quote": injection, **place}
    route = {"skill": "rule-judge", "score": 0.9, "abstained": False, "reason": injection}
    chunk = {"chunk": "x", "document": document.digest, "text": injection, "score": 1.0, **place}
    outputs = {
        "facts": [{"name": "party", "value": injection, "score": 0.9, **place}],
        "clauses": [{"category": "Rent", "score": 0.9, **quote}],
        "reviews": [
            {
                "rule": "The rent is named.",
                "severity": "must",
                "verdict": "entailed",
                "score": 0.9,
                "evidence": [quote],
                "context": [chunk, chunk | {"document": "f" * 64, "source": injection}],
                "route": {**route, "scores": {}},
            }
        ],
        "findings": [
            {"statement": injection, "rating": "good", "severity": None, "about": {"clause": 0}}
        ],
    }
    run = {
        "id": "r",
        "workflow": "w",
        "backbone": "b",
        "skills": {},
        "seconds": {},
        "tokens": {"prompt": 1, "completion": 1, "cached": 0},
        "routes": [],
        "sources": {},
    }
    report = build_report(outputs, document, run)
    tokens = MarkdownIt("commonmark", {"linkify": False}).enable("table").parse(to_markdown(report))
    kinds = {child.type for token in tokens for child in token.children or ()}
    assert not {"link_open", "image", "html_inline"} & kinds
    assert "html_block" not in {token.type for token in tokens}
    page = _Links(to_html(report, document))
    assert all(target.startswith("#") for target in page.targets)
    assert not {"img", "iframe", "form", "object", "embed"} & set(page.tags)
    assert page.tags.count("script") == 1
