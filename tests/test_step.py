"""The spine on a tiny real backbone: routes, context, answers of every kind, and errors apart."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agentkit.engine.engine import Engine
from agentkit.errors import DocumentError, InputError, LimitError, RouteError, SkillError
from agentkit.prompt import number_spans, span_lengths
from agentkit.retrieval.loaders import document_from_text
from agentkit.retrieval.retriever import Retriever
from agentkit.retrieval.store import FileDocumentStore
from agentkit.routing.controller import Controller
from agentkit.settings import Settings
from agentkit.skill.folder import Skill, load_skill
from agentkit.step import Runner
from agentkit.testing import (
    FakeEncoder,
    TinyBackbone,
    tiny_adapter,
    tiny_choice_head,
    tiny_label_head,
)
from agentkit.types import ContextSpec, Document, StepCall, StepResult

DOCUMENT_INPUT = {
    "type": "object",
    "properties": {"document": {"type": "string"}},
    "required": ["document"],
}
RULE_INPUT = {
    "type": "object",
    "properties": {"rule": {"type": "string"}, "document": {"type": "string"}},
    "required": ["rule", "document"],
}
PLACE = {
    "type": "object",
    "properties": {"start": {"type": "integer"}, "end": {"type": "integer"}},
    "required": ["start", "end", "score"],
}

MANIFESTS: dict[str, dict[str, Any]] = {
    "rule-judge": {
        "input": RULE_INPUT,
        "output": {
            "type": "object",
            "properties": {"verdict": {"enum": ["yes", "no", "silent"]}, "evidence": {}},
            "required": ["verdict", "evidence", "score"],
        },
        "prompt": {"question": "Rule: {{ rule }}"},
        "answer": {
            "kind": "choice",
            "choices": ["yes", "no", "silent"],
            "field": "verdict",
            "evidence_field": "evidence",
        },
        "retrieval": {"document": "document", "query": "{{ rule }}"},
        "utterances": ["check this rule against the paper", "is the rule kept in the paper"],
    },
    "clause-finder": {
        "input": DOCUMENT_INPUT,
        "output": {
            "type": "object",
            "properties": {"marks": {"type": "array", "items": PLACE}},
            "required": ["marks"],
        },
        "prompt": {"question": ""},
        "answer": {
            "kind": "marks",
            "labels": [
                {"name": "duty", "threshold": 0.02},
                {"name": "right", "threshold": 0.02},
                {"name": "party", "unit": "token", "threshold": 0.0},
            ],
            "fields": {"marks": {"label_key": "label", "quote_key": "quote"}},
        },
        "retrieval": {"document": "document", "mode": "windows", "window": 96},
        "utterances": ["find every clause", "list all clauses by kind"],
    },
    "note-writer": {
        "input": {
            "type": "object",
            "properties": {"topic": {"type": "string"}, "document": {"type": "string"}},
            "required": ["topic"],
        },
        "output": {
            "type": "object",
            "properties": {
                "because": {"x-quote": True},
                "note": {"type": "string", "maxLength": 12},
            },
            "required": ["because", "note"],
        },
        "prompt": {"question": "Topic: {{ topic }}"},
        "generation": {"max_tokens": 48},
        "retrieval": {"document": "document"},
        "utterances": ["write a short note about the topic", "note down the topic"],
    },
    "mood-teller": {
        "input": {
            "type": "object",
            "properties": {"text": {"type": "string"}},
            "required": ["text"],
            "additionalProperties": False,
        },
        "output": {"type": "object", "required": ["mood", "score"]},
        "prompt": {"question": "{{ text }}"},
        "answer": {
            "kind": "choice",
            "choices": ["glad", "sad"],
            "field": "mood",
            "scoring": "likelihood",
        },
        "utterances": ["tell the mood of these words", "are these words glad or sad"],
    },
}


@pytest.fixture(scope="module")
def skills(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: TinyBackbone):
    folder = tmp_path_factory.mktemp("skills")
    heads = {"rule-judge": tiny_choice_head(48, 3), "clause-finder": tiny_label_head(48, 2, 1)}
    made = {
        name: load_skill(
            tiny_adapter(
                folder / name,
                tiny_backbone,
                manifest=manifest,
                head=heads.get(name),
                layers=[2, 3],
                seed=seed,
            )
        )
        for seed, (name, manifest) in enumerate(MANIFESTS.items(), start=1)
    }
    made["bare-words"] = load_skill(tiny_adapter(folder / "bare-words", tiny_backbone, seed=9))
    return made


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def settings(home: Path, tiny_backbone: TinyBackbone) -> Settings:
    return Settings(home=home, backbone=str(tiny_backbone.path), dtype="float32", threads=1)


@pytest.fixture(scope="module")
def engine(settings: Settings) -> Iterator[Engine]:
    with Engine.open(settings) as engine:
        yield engine


@pytest.fixture(scope="module")
def documents(settings: Settings) -> FileDocumentStore:
    return FileDocumentStore(settings.documents_dir)


@pytest.fixture(scope="module")
def retriever(settings: Settings, documents: FileDocumentStore) -> Retriever:
    return Retriever(FakeEncoder(), settings, documents)


@pytest.fixture(scope="module")
def make_runner(
    skills: dict[str, Skill],
    engine: Engine,
    retriever: Retriever,
    documents: FileDocumentStore,
    settings: Settings,
):
    controller = Controller(retriever._encoder)
    controller.fit({n: (s.manifest.description, s.manifest.utterances) for n, s in skills.items()})

    def make(changed: Settings | None = None) -> Runner:
        return Runner(
            skills,
            engine=engine,
            controller=controller,
            retriever=retriever,
            documents=documents,
            settings=changed or settings,
        )

    return make


@pytest.fixture(scope="module")
def runner(make_runner) -> Runner:
    return make_runner()


def call(skill: str = "auto", instruction: str = "", **rest: Any) -> StepCall:
    values = {"step": "one", "instruction": instruction, "input": {}} | rest
    return StepCall(skill=skill, **values)


def only(runner: Runner, one: StepCall) -> StepResult:
    (result,) = runner.run([one])
    if isinstance(result, Exception):
        raise result
    return result


def cited(document: Document, result: StepResult) -> None:
    for citation in result.citations:
        assert citation.document == document.digest
        assert document.text[citation.start : citation.end] == citation.text


# ---------------------------------------------------------------- every way of answering


def test_a_choice_by_head_points_at_the_documents_words(
    runner: Runner, agreement_text: str, agreement_document: Document, skills: dict[str, Skill]
) -> None:
    result = only(runner, call("rule-judge", input={"rule": "R", "document": agreement_text}))
    assert result.skill == "rule-judge"
    assert result.digest == skills["rule-judge"].digest
    assert result.output["verdict"] in ("yes", "no", "silent")
    assert result.output["evidence"]
    for piece in result.output["evidence"]:
        assert agreement_text[piece["start"] : piece["end"]] == piece["quote"]
    cited(agreement_document, result)
    assert result.usage.prompt_tokens > 0


def test_a_choice_by_likelihood_weighs_its_answers(runner: Runner) -> None:
    result = only(runner, call("mood-teller", input={"text": "What a day."}))
    assert result.output["mood"] in ("glad", "sad")
    assert 0.5 <= result.output["score"] <= 1.0
    assert result.citations == ()


def test_a_written_answer_meets_its_schema_and_quotes_by_number(
    runner: Runner, agreement_text: str
) -> None:
    result = only(runner, call("note-writer", input={"topic": "law", "document": agreement_text}))
    quote = result.output["because"]
    assert agreement_text[quote["start"] : quote["end"]] == quote["quote"]
    assert len(result.output["note"]) <= 12
    assert result.usage.completion_tokens > 0


def test_marks_come_from_every_window_of_the_document(
    runner: Runner, engine: Engine, agreement_text: str, agreement_document: Document
) -> None:
    result = only(runner, call("clause-finder", input={"document": agreement_text}))
    marks = result.output["marks"]
    for mark in marks:
        assert agreement_text[mark["start"] : mark["end"]] == mark["quote"]
    assert [m["start"] for m in marks] == sorted(m["start"] for m in marks)
    assert len(result.citations) > 1  # one a window
    cited(agreement_document, result)
    lengths = span_lengths(engine.tokenizer, number_spans(agreement_document))
    assert sum(lengths) > 96
    words = set(agreement_text.split())
    assert words == {w for c in result.citations for w in c.text.split()}


def test_a_bare_adapter_takes_the_words_of_its_input_and_writes_text(runner: Runner) -> None:
    result = only(runner, call("bare-words", input={"first": "One.", "count": 2}))
    assert isinstance(result.output, str)
    assert result.skill == "bare-words"


def test_all_scores_lowers_every_threshold(runner: Runner, agreement_text: str) -> None:
    plain = call("rule-judge", input={"rule": "R", "document": agreement_text})
    shown = only(runner, dataclasses.replace(plain, all_scores=True)).output["evidence"]
    assert len(shown) == len(document_from_text(agreement_text).spans)


# ---------------------------------------------------------------- routes


def test_the_controller_picks_the_skill_that_the_instruction_asks_for(
    runner: Runner, agreement_text: str
) -> None:
    asked = {
        "rule-judge": call(
            instruction="check this rule against the paper",
            input={"rule": "R", "document": agreement_text},
            threshold=0.0,
        ),
        "mood-teller": call(
            instruction="tell the mood of these words", input={"text": "Hm."}, threshold=0.0
        ),
    }
    results = runner.run(list(asked.values()))
    for name, result in zip(asked, results, strict=True):
        assert isinstance(result, StepResult)
        assert result.skill == name == result.route.skill
        assert not result.route.abstained
        assert result.route.scores[name] == max(result.route.scores.values())


def test_only_skills_whose_input_schema_fits_are_candidates(
    runner: Runner, agreement_text: str
) -> None:
    route = only(runner, call(instruction="find every clause", input={"text": "Hm."})).route
    assert set(route.scores) == {"mood-teller", "bare-words"}
    route = only(
        runner, call(instruction="find every clause", input={"document": agreement_text})
    ).route
    assert set(route.scores) == {"clause-finder", "bare-words"}


def test_a_reference_to_a_document_fits_where_its_text_would(
    runner: Runner, documents: FileDocumentStore, agreement_document: Document
) -> None:
    documents.put(agreement_document)
    reference = {"$document": agreement_document.digest}
    route = only(runner, call(instruction="find clauses", input={"document": reference})).route
    assert "clause-finder" in route.scores


def test_a_named_skill_is_not_routed(runner: Runner) -> None:
    route = only(runner, call("mood-teller", input={"text": "Hm."})).route
    assert (route.skill, route.score, route.abstained) == ("mood-teller", 1.0, False)
    assert route.reason == "named by the step"


def test_base_asks_the_bare_backbone(runner: Runner, agreement_text: str) -> None:
    result = only(runner, call("base", "Say hello.", input={"text": "Hm."}))
    assert (result.skill, result.digest) == (None, None)
    assert isinstance(result.output, str)
    again = only(runner, call("base", "Say hello.", input={"text": "Hm."}))
    assert again.output == result.output


def uncertain(on_uncertain: str, **rest: Any) -> StepCall:
    return call(
        instruction="juggle nine burning torches",
        input={"text": "Hm."},
        on_uncertain=on_uncertain,
        threshold=1.0,
        **rest,
    )


def test_an_abstention_goes_to_the_bare_backbone_by_default(runner: Runner) -> None:
    result = only(runner, uncertain("base"))
    assert result.route.abstained
    assert result.route.reason
    assert result.skill is None
    assert isinstance(result.output, str)


def test_the_bare_backbone_is_not_asked_for_words_that_nobody_can_use(runner: Runner) -> None:
    result = only(runner, uncertain("base", fields=("mood",)))
    assert result.route.abstained
    assert (result.output, result.skill, result.needs_human) == (None, None, False)
    assert result.usage.prompt_tokens == 0
    asked = only(runner, call("base", "Say hello.", input={"text": "Hm."}, fields=("mood",)))
    assert isinstance(asked.output, str)


def test_no_route_leads_to_a_skill_that_gives_nothing_of_what_is_taken(runner: Runner) -> None:
    told = only(runner, call(instruction="tell the mood", input={"text": "Hm."}, fields=("mood",)))
    assert "mood-teller" in told.route.scores
    other = only(runner, call(instruction="tell the mood", input={"text": "Hm."}, fields=("x",)))
    assert "mood-teller" not in other.route.scores
    assert (other.route.abstained, other.output) == (True, None)


def test_an_abstention_can_wait_for_a_person(runner: Runner) -> None:
    result = only(runner, uncertain("human"))
    assert result.needs_human
    assert (result.output, result.skill) == (None, None)
    assert result.usage.prompt_tokens == 0


def test_an_abstention_can_fail_the_step(runner: Runner) -> None:
    (error,) = runner.run([uncertain("fail", step="juggling")])
    assert isinstance(error, RouteError)
    assert str(error).startswith("step juggling: no skill fits")


def test_an_abstention_can_fall_back_to_a_named_skill(runner: Runner) -> None:
    result = only(runner, uncertain("mood-teller"))
    assert result.route.abstained
    assert result.skill == "mood-teller"
    assert result.output["mood"] in ("glad", "sad")


# ---------------------------------------------------------------- errors apart


def test_a_failing_call_does_not_harm_the_others(
    runner: Runner, agreement_text: str, home: Path
) -> None:
    good = call("mood-teller", input={"text": "Hm."}, item=0)
    missing = {"$document": "0" * 64}
    bad = {
        InputError: [
            call("rule-judge", input={"rule": "no document"}),
            call("nobody", input={"text": "Hm."}),
            call(instruction="tell", input={"text": "Hm."}, threshold=7.0),
            uncertain("nobody"),
        ],
        DocumentError: [
            call("clause-finder", input={"document": missing}),
            call(instruction="find every clause", input={"document": missing}),
            call("clause-finder", input={"document": " \n "}),
            call("base", "Say.", input={"document": missing}),
        ],
        LimitError: [call("mood-teller", input={"text": "word " * 3000})],
    }
    calls = [one for group in bad.values() for one in group]
    mixed = [one for pair in zip(calls, [good] * len(calls), strict=True) for one in pair]
    results = runner.run(mixed)
    alone = only(runner, good).output
    assert len(results) == len(mixed)
    for error, wanted in zip(
        results[::2], [kind for kind, group in bad.items() for _ in group], strict=True
    ):
        assert isinstance(error, wanted), error
    for result in results[1::2]:
        assert isinstance(result, StepResult)
        assert result.output == alone


def test_a_template_that_fails_on_an_input_fails_that_call_alone(
    make_runner, engine: Engine, skills: dict[str, Skill]
) -> None:
    runner: Runner = make_runner()
    broken = skills["mood-teller"]
    manifest = broken.manifest.model_copy(
        update={"prompt": SimpleNamespace(question="{{ text + 1 }}")}
    )
    runner._skills["broken"] = dataclasses.replace(broken, manifest=manifest)
    error, good = runner.run(
        [call("broken", input={"text": "Hm."}), call("mood-teller", input={"text": "Hm."})]
    )
    assert isinstance(error, SkillError)
    assert isinstance(good, StepResult)


def test_an_answer_that_breaks_its_schema_names_step_and_skill(
    make_runner, skills: dict[str, Skill]
) -> None:
    runner: Runner = make_runner()
    manifest = skills["mood-teller"].manifest.model_copy(update={"output": {"type": "array"}})
    runner._skills["strict"] = dataclasses.replace(skills["mood-teller"], manifest=manifest)
    (error,) = runner.run([call("strict", step="tell", input={"text": "Hm."})])
    assert str(error).startswith("step tell, skill mood-teller: the answer does not meet")


# ---------------------------------------------------------------- context


def judge(text: Any, **context: Any) -> StepCall:
    return call(
        "rule-judge",
        input={"rule": "governed by the laws of Norway", "document": text},
        context=ContextSpec(**context) if context else None,
    )


def test_a_document_that_fits_is_given_whole(
    runner: Runner, agreement_text: str, agreement_document: Document
) -> None:
    (citation,) = only(runner, judge(agreement_text)).citations
    first, last = agreement_document.spans[0], agreement_document.spans[-1]
    assert (citation.start, citation.end) == (first.start, last.end)
    assert citation.score == 1.0


@pytest.mark.parametrize("skill", ["rule-judge", "base"])
def test_a_step_can_be_shown_given_stretches_alone_or_nothing(
    runner: Runner, documents: FileDocumentStore, agreement_document: Document, skill: str
) -> None:
    documents.put(agreement_document)
    text = agreement_document.text
    place = text.index("laws of Norway")
    sentence = next(s for s in agreement_document.spans if s.start <= place < s.end)
    given = dataclasses.replace(judge(text, spans=((place, place + 4),)), skill=skill)
    reference = {"$document": agreement_document.digest}
    if skill == "base":
        given = dataclasses.replace(given, instruction="Answer.", input={"document": reference})
    (citation,) = only(runner, given).citations
    assert (citation.start, citation.end) == (sentence.start, sentence.end)
    nothing = dataclasses.replace(given, context=ContextSpec(mode="none"))
    assert only(runner, nothing).citations == ()


def test_a_longer_document_gives_excerpts_within_the_budget(
    make_runner,
    settings: Settings,
    engine: Engine,
    agreement_text: str,
    agreement_document: Document,
) -> None:
    small = settings.model_copy(update={"document_window": 64, "excerpt_budget": 70})
    result = only(make_runner(small), judge(agreement_text))
    cited(agreement_document, result)
    assert any("laws of Norway" in c.text for c in result.citations)
    assert sum(engine.count_tokens(c.text) for c in result.citations) <= 70
    starts = [c.start for c in result.citations]
    assert starts == sorted(starts)
    shown = {(c.start, c.end) for c in result.citations}
    for piece in result.output["evidence"]:
        assert (piece["start"], piece["end"]) in shown


def test_a_step_can_ask_for_excerpts_with_a_query_and_a_count_of_its_own(
    runner: Runner, agreement_text: str
) -> None:
    result = only(
        runner, judge(agreement_text, mode="excerpts", query="advisers", top_k=1, budget=40)
    )
    assert any("advisers" in c.text for c in result.citations)
    assert len(result.citations) <= 3


def test_a_step_can_show_nothing_of_the_document(runner: Runner, agreement_text: str) -> None:
    result = only(runner, judge(agreement_text, mode="none"))
    assert result.citations == ()
    assert result.output["evidence"] == []


def test_a_standing_index_adds_its_chunks(
    runner: Runner, retriever: Retriever, tmp_path: Path, agreement_text: str
) -> None:
    source = tmp_path / "handbook.txt"
    source.write_text("Contracts under the laws of Norway need a second signature.\n")
    place = str(tmp_path / "handbook-index")
    built = retriever.build_index([source], place)
    result = only(runner, judge(agreement_text, index=place))
    (digest,) = built.documents
    others = [c for c in result.citations if c.document == digest]
    assert [c.source for c in others] == ["handbook.txt"]
    assert len(result.citations) == 2  # and the whole document


def test_a_standing_index_serves_a_skill_that_reads_no_document(
    runner: Runner, retriever: Retriever, tmp_path: Path
) -> None:
    source = tmp_path / "moods.txt"
    source.write_text("A glad day is a good day.\n")
    place = str(tmp_path / "moods-index")
    retriever.build_index([source], place)
    result = only(
        runner,
        call("mood-teller", input={"text": "A day."}, context=ContextSpec(index=place)),
    )
    assert [c.text for c in result.citations] == ["A glad day is a good day."]


def test_a_missing_index_is_that_calls_error(runner: Runner, tmp_path: Path) -> None:
    place = ContextSpec(index=str(tmp_path / "nowhere"))
    (error,) = runner.run([call("mood-teller", input={"text": "Hm."}, context=place)])
    assert isinstance(error, InputError)


@pytest.mark.parametrize("name", ["rule-judge", "clause-finder", "note-writer", "bare-words"])
def test_a_reference_and_the_text_itself_give_the_same(
    runner: Runner, documents: FileDocumentStore, agreement_document: Document, name: str
) -> None:
    documents.put(agreement_document)
    rest = {"rule-judge": {"rule": "R"}, "note-writer": {"topic": "law"}}.get(name, {})
    reference = {"$document": agreement_document.digest}
    by_reference = only(runner, call(name, input={**rest, "document": reference}))
    if name == "bare-words":  # it has no field for a document: a reference shows it as spans
        cited(agreement_document, by_reference)
        assert by_reference.citations
        return
    by_text = only(runner, call(name, input={**rest, "document": agreement_document.text}))
    assert by_reference.output == by_text.output
    assert [(c.start, c.end) for c in by_reference.citations] == [
        (c.start, c.end) for c in by_text.citations
    ]


# ---------------------------------------------------------------- together


def test_calls_given_together_equal_calls_given_alone(runner: Runner, agreement_text: str) -> None:
    calls = [
        *(
            call("rule-judge", input={"rule": rule, "document": agreement_text}, item=at)
            for at, rule in enumerate(("Norway rules.", "Nobody may tell.", "Advisers may know."))
        ),
        call("mood-teller", input={"text": "Hm."}),
        call("note-writer", input={"topic": "law", "document": agreement_text}),
        call("clause-finder", input={"document": agreement_text}),
        call("base", "Say hello.", input={"text": "Hm."}),
        call("bare-words", input={"text": "Hm."}),
    ]
    together = runner.run(calls)
    for one, result in zip(calls, together, strict=True):
        assert isinstance(result, StepResult)
        alone = only(runner, one)
        assert result.output == alone.output
        assert (result.skill, result.item, result.step) == (alone.skill, one.item, one.step)
        assert result.citations == alone.citations


def test_rules_that_ask_different_windows_get_the_answers_of_their_own(
    tmp_path: Path,
    tiny_backbone: TinyBackbone,
    engine: Engine,
    retriever: Retriever,
    documents: FileDocumentStore,
    settings: Settings,
    agreement_text: str,
) -> None:
    retrieval = {
        "document": "document",
        "query": "{{ rule }}",
        "mode": "windows",
        "window": 64,
        "windows": 2,
    }
    manifest = {**MANIFESTS["rule-judge"], "retrieval": retrieval}
    folder = tiny_adapter(
        tmp_path / "window-judge",
        tiny_backbone,
        manifest=manifest,
        head=tiny_choice_head(48, 3),
        layers=[2, 3],
        seed=7,
    )
    runner = Runner(
        {"window-judge": load_skill(folder)},
        engine=engine,
        controller=Controller(retriever._encoder),
        retriever=retriever,
        documents=documents,
        settings=settings,
    )
    lines = [line for line in agreement_text.splitlines() if len(line) > 40]
    calls = [
        call("window-judge", input={"rule": line[:60], "document": agreement_text}, item=at)
        for at, line in enumerate(reversed(lines))
    ]
    together = runner.run(calls)
    shown = set()
    for one, result in zip(calls, together, strict=True):
        assert isinstance(result, StepResult)
        alone = only(runner, one)
        assert (result.output, result.citations) == (alone.output, alone.citations)
        shown.add(tuple(citation.start for citation in result.citations))
        for piece in result.output["evidence"]:
            assert agreement_text[piece["start"] : piece["end"]] == piece["quote"]
            assert any(c.start <= piece["start"] < c.end for c in result.citations)
    assert len(shown) > 2


def test_results_are_streamed_with_their_places(runner: Runner, agreement_text: str) -> None:
    calls = [
        call("nobody"),
        uncertain("human"),
        call("clause-finder", input={"document": agreement_text}),
    ]
    streamed = list(runner.stream(calls))
    assert sorted(place for place, _ in streamed) == [0, 1, 2]
    assert streamed[0][0] == 0  # what needs no answer comes first


def test_no_calls_give_no_results(runner: Runner) -> None:
    assert runner.run([]) == []


def test_a_run_keeps_the_skills_that_it_began_with(
    engine: Engine,
    retriever: Retriever,
    documents: FileDocumentStore,
    settings: Settings,
    skills: dict[str, Skill],
) -> None:
    controller = Controller(FakeEncoder())
    served = {"mood-teller": skills["mood-teller"]}
    controller.fit({"mood-teller": ("Tells moods.", ())})
    runner = Runner(
        served,
        engine=engine,
        controller=controller,
        retriever=retriever,
        documents=documents,
        settings=settings,
    )
    before = only(runner, call("mood-teller", input={"text": "Hm."}))
    served["mood-teller"] = skills["bare-words"]
    after = only(runner, call("mood-teller", input={"text": "Hm."}))
    assert before.digest == after.digest == skills["mood-teller"].digest
    assert after.output == before.output
