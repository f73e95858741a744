"""Rows through predictors: documents together, comparisons paired, floors kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from agentkit.errors import InputError
from agentkit.evaluation.baselines import baselines
from agentkit.evaluation.evaluate import batches, check_gold, evaluate, text_reader
from agentkit.evaluation.pictures import draw_all
from agentkit.evaluation.resampling import document_weights
from agentkit.evaluation.scoring import Prediction
from agentkit.skill.figures import figures_of
from agentkit.skill.manifest import Manifest, MetricFloor, RetrievalDefaults
from agentkit.training.rows import Row


def row(document: str, rule: str, verdict: str | None) -> Row:
    expected = None if verdict is None else {"verdict": verdict}
    return Row({"document": document, "rule": rule}, expected, document)


def always(verdict: str, score: float = 0.7):
    def predict(rows: Sequence[Row]) -> list[Prediction]:
        return [Prediction({"verdict": verdict, "score": score}) for _ in rows]

    return predict


def of_the_rule(rows: Sequence[Row]) -> list[Prediction]:
    return [Prediction({"verdict": one.input["rule"], "score": 0.9}) for one in rows]


ROWS = [
    row(f"document {n}", rule, rule) for n in range(6) for rule in ("yes", "no", "silent")[: 1 + n]
]


def measured(manifest: Manifest, rows: Sequence[Row] = ROWS, **more):
    predictors = {"mine": of_the_rule, "theirs": always("yes")}
    found = evaluate(
        manifest, rows, predictors, text_of=text_reader(manifest, str), resamples=200, **more
    )
    assert found is not None
    return found


def test_the_first_predictor_is_compared_with_the_others(choice_manifest: Manifest) -> None:
    found = measured(choice_manifest)
    assert (found.rows, found.documents) == (len(ROWS), 6)
    assert found.skill.figures["accuracy"].value == 1.0
    others = found.others["theirs"]
    assert others.figures["accuracy"].value == pytest.approx(6 / len(ROWS))
    less = others.differences["accuracy"]
    assert less.value == pytest.approx(1 - 6 / len(ROWS))
    assert 0 < less.low <= less.value <= less.high < 1
    columns, lines = found.table()
    assert columns == ["metric", "value", "95% interval", "theirs", "less theirs"]
    assert lines[0][:2] == ["accuracy", "1.0000"]
    assert json.loads(json.dumps(found.to_json()))["compared"]["theirs"]["failed"] == 0


def test_the_f1_of_each_label_has_the_interval_of_its_documents(choice_manifest: Manifest) -> None:
    said = [("yes", "no", "silent")[n % 3] for n in range(len(ROWS))]
    answers = {id(one): verdict for one, verdict in zip(ROWS, said, strict=True)}

    def mixed(rows: Sequence[Row]) -> list[Prediction]:
        return [Prediction({"verdict": answers[id(one)], "score": 0.5}) for one in rows]

    found = evaluate(
        choice_manifest,
        ROWS,
        {"mine": mixed},
        text_of=text_reader(choice_manifest, str),
        resamples=300,
    )
    assert found is not None
    labels = found.skill.details["labels"]
    gold = [one.expected["verdict"] for one in ROWS]
    groups = [one.group for one in ROWS]
    for name in ("yes", "no", "silent"):
        drawn = [
            f1_score(gold, said, labels=[name], average=None, sample_weight=w, zero_division=0)[0]
            for w in document_weights(groups, resamples=300, seed=0)
            if w @ [name in pair for pair in zip(gold, said, strict=True)]
        ]
        expected = [round(float(end), 4) for end in np.quantile(drawn, [0.025, 0.975])]
        assert labels[name]["f1_interval"] == expected
        assert expected[0] < expected[1]


def test_marks_have_the_interval_of_each_labels_span_f1(marks_manifest: Manifest) -> None:
    def duty(rows: Sequence[Row]) -> list[Prediction]:
        wrong = {"start": 9, "end": 12, "category": "duty"}
        return [
            Prediction({"clauses": [*one.expected["clauses"][: n % 2], wrong], "names": []})
            for n, one in enumerate(rows)
        ]

    mark = {"start": 0, "end": 4, "category": "duty"}
    rows = [
        Row({"document": f"Ann came {n:03}."}, {"clauses": [mark], "names": []}, str(n))
        for n in range(8)
    ]
    found = evaluate(
        marks_manifest, rows, {"mine": duty}, text_of=text_reader(marks_manifest, str), resamples=50
    )
    assert found is not None
    labels = found.skill.details["labels"]
    low, high = labels["duty"]["span_f1_interval"]
    assert low < labels["duty"]["span_f1"] < high
    assert {one["span_f1_interval"] for name, one in labels.items() if name != "duty"} == {None}


def never(rows: Sequence[Row]) -> list[Prediction]:
    raise AssertionError("asked before the rows were looked at")


@pytest.mark.parametrize(
    ("expected", "said"),
    [
        ({"tone": "loud"}, "tone is 'loud', not one of calm, rude"),
        ({"tone": 1, "said": "x"}, "tone is 1, not one of calm, rude"),
    ],
)
def test_a_label_that_is_none_is_refused_before_any_row_is_answered(
    text_manifest: Manifest, expected: dict[str, object], said: str
) -> None:
    properties = {"tone": {"enum": ["calm", "rude"]}, "said": {"type": "string"}}
    output = {"type": "object", "properties": properties}
    manifest = text_manifest.model_copy(update={"output": output})
    rows = [Row({"text": "x"}, one, "g") for one in ({"tone": None}, {"said": "y"}, expected)]
    with pytest.raises(InputError, match=said) as error:
        evaluate(manifest, rows, {"mine": never}, text_of=str)
    assert error.value.where == "row 3"


def test_a_document_in_the_store_has_stretches_of_any_length(
    marks_manifest: Manifest, choice_manifest: Manifest
) -> None:
    stored = {"document": {"$document": "abc"}}
    rows = [Row(stored, {"clauses": [{"category": "duty", "start": 3, "end": 9_000}]}, "g")]
    found = evaluate(
        marks_manifest,
        rows,
        {"mine": lambda rows: [Prediction({"clauses": []}) for _ in rows]},
        text_of=text_reader(marks_manifest, lambda digest: "x" * 9_000),
        resamples=0,
    )
    assert found is not None
    assert found.skill.figures["span_recall"].value == 0.0
    # By a field that the manifest does not name a document, or as the whole input, too.
    for input in ({"paper": {"$document": "abc"}, "document": None}, "abc"):
        check_gold(
            choice_manifest,
            [Row(input, {"verdict": "yes", "evidence": [{"start": 3.0, "end": 9}]}, "g")],
        )
    with pytest.raises(InputError, match=r"evidence/0: start and end are numbers"):
        check_gold(
            choice_manifest,
            [Row("abc", {"verdict": "yes", "evidence": [{"start": 3.5, "end": 9}]}, "g")],
        )
    backwards = [Row(stored, {"clauses": [{"category": "duty", "start": 9, "end": 3}]}, "g")]
    with pytest.raises(InputError, match=r"9 to 3 is no stretch of a document \(skill"):
        evaluate(marks_manifest, backwards, {"mine": never}, text_of=str)


@given(st.lists(st.sampled_from("abc"), max_size=90))
def test_rows_of_one_document_are_asked_together_and_each_once(documents: list[str]) -> None:
    manifest = Manifest.model_validate(
        {"name": "toy", "description": "A toy.", "retrieval": {"document": "document"}}
    )
    rows = [row(document, "yes", "yes") for document in documents]
    order = [at for batch in batches(rows, manifest) for at in batch]
    assert sorted(order) == list(range(len(rows)))
    seen = [documents[at] for at in order]
    assert seen == [name for name in dict.fromkeys(documents) for _ in range(seen.count(name))]


def test_rows_without_what_is_right_are_answered_by_the_skill_alone(
    choice_manifest: Manifest,
) -> None:
    rows = [row("a", "yes", "yes"), row("a", "no", None), row("b", "no", "no")]
    asked: list[int] = []
    given: dict[int, Prediction] = {}

    def theirs(some: Sequence[Row]) -> list[Prediction]:
        asked.extend(rows.index(one) for one in some)
        return always("no")(some)

    found = evaluate(
        choice_manifest,
        rows,
        {"mine": of_the_rule, "theirs": theirs},
        text_of=text_reader(choice_manifest, str),
        on_prediction=given.__setitem__,
    )
    assert found is not None
    assert found.rows == 2
    assert asked == [0, 2]
    assert sorted(given) == [0, 1, 2]


def test_without_any_such_row_there_is_no_evaluation(choice_manifest: Manifest) -> None:
    rows = [row("a", "yes", None)]
    text_of = text_reader(choice_manifest, str)
    assert evaluate(choice_manifest, rows, {"mine": of_the_rule}, text_of=text_of) is None


def test_a_row_that_expects_the_impossible_is_named(choice_manifest: Manifest) -> None:
    with pytest.raises(InputError, match="row 2: verdict is 'maybe'"):
        measured(choice_manifest, [row("a", "yes", "yes"), row("b", "no", "maybe")])


def test_floors_are_met_or_missed_for_a_label_too_and_are_ceilings_for_errors(
    choice_manifest: Manifest,
) -> None:
    floors = {
        "accuracy": MetricFloor(floor=1.0),
        "f1.silent": MetricFloor(floor=0.5),
        "brier": MetricFloor(floor=0.5),
        "ece": MetricFloor(floor=0.05),
        "macro_f1": MetricFloor(),
    }
    found = measured(choice_manifest)
    reached = found.floors(choice_manifest.model_copy(update={"metrics": floors}))
    assert {floor.metric: floor.met for floor in reached} == {
        "accuracy": True,
        "f1.silent": True,
        "brier": True,
        "ece": False,
    }
    assert str(reached[0]) == "accuracy is 1.0000, promised is at least 1"
    assert str(reached[-1]) == "ece is 0.1000, promised is at most 0.05"
    unknown = choice_manifest.model_copy(update={"metrics": {"speed": MetricFloor(floor=1.0)}})
    with pytest.raises(InputError, match=r"there is no metric 'speed'.*measured are: accuracy"):
        found.floors(unknown)


def test_a_floor_on_what_the_rows_say_nothing_of_is_missed(choice_manifest: Manifest) -> None:
    floors = {"evidence_f1": MetricFloor(floor=0.5)}
    (floor,) = measured(choice_manifest).floors(
        choice_manifest.model_copy(update={"metrics": floors})
    )
    assert not floor.met
    assert "undefined on these rows" in str(floor)


@pytest.mark.parametrize("kind", ["choice", "marks", "text"])
def test_the_figures_that_may_be_promised_are_those_that_are_measured(
    kind: str, request: pytest.FixtureRequest
) -> None:
    manifest: Manifest = request.getfixturevalue(f"{kind}_manifest")
    place = {"start": 0, "end": 4}
    output = {
        "choice": {"verdict": "yes", "evidence": [place | {"score": 0.5}], "score": 0.5},
        "marks": {"clauses": [place | {"category": "duty"}], "names": []},
        "text": {"grade": "good", "said": "Ann came."},
    }[kind]
    asked = Row({"document": "Ann came."}, output, "a")
    found = evaluate(
        manifest,
        [asked],
        {"mine": lambda rows: [Prediction(output, scores=output) for _ in rows]},
        text_of=text_reader(manifest, str),
    )
    assert found is not None
    figures, of_labels = figures_of(manifest)
    assert set(figures) == set(found.skill.figures)
    labels = found.skill.details["labels"]
    assert set(of_labels) == {f"{name}.{label}" for label, one in labels.items() for name in one}


def test_several_labels_and_texts_are_promised_by_the_names_they_are_measured_by() -> None:
    fields = {"grade": {"enum": ["a", "b"]}, "sure": {"type": "boolean"}, "other": True}
    texts = {"said": {"type": "string"}, "why": {"type": "string"}}
    manifest = Manifest(
        name="toy", description="A toy.", output={"type": "object", "properties": fields | texts}
    )
    figures, of_labels = figures_of(manifest)
    assert {"accuracy.grade", "macro_f1.sure", "rouge_l.said", "supported.why"} <= set(figures)
    assert "accuracy" not in figures
    assert {"f1.grade=a", "recall.sure=True"} <= set(of_labels)


def test_the_text_of_a_document_stands_in_the_input_or_in_the_store(
    marks_manifest: Manifest,
) -> None:
    text_of = text_reader(marks_manifest, {"abc": "stored"}.__getitem__)
    assert text_of({"document": "inline"}) == "inline"
    assert text_of({"document": {"$document": "abc"}}) == "stored"
    with pytest.raises(InputError, match="the row has no document"):
        text_of({"text": "x"})


# ---------------------------------------------------------------- baselines


def test_the_prior_answers_each_question_with_its_most_frequent_label(
    choice_manifest: Manifest,
) -> None:
    learnt = [row(f"d{n}", "q", "no" if n < 3 else "yes") for n in range(4)]
    learnt += [row(f"d{n}", "r", "yes") for n in range(4)]
    prior = baselines(choice_manifest, learnt)["prior"]
    found = prior([row("new", "q", None), row("new", "r", None), row("new", "unknown", None)])
    assert [one.output for one in found] == [
        {"verdict": "no", "score": 0.75},
        {"verdict": "yes", "score": 1.0},
        {"verdict": "yes", "score": 0.625},
    ]


def test_the_nearest_row_gives_its_text_and_the_nearest_few_vote_on_labels(
    text_manifest: Manifest,
) -> None:
    def learnt(text: str, grade: str, said: str) -> Row:
        return Row({"text": text}, {"grade": grade, "said": said}, text)

    rows = [learnt("cats sleep all day", "bad", "Cats sleep.")]
    rows += [learnt(f"cats sleep {n} hours", "good", f"They sleep {n}.") for n in range(8)]
    nearest = baselines(text_manifest, rows)["tf-idf"]
    asked = Row({"text": "cats sleep all day long"}, None, "x")
    found = nearest([asked])[0].output
    assert (found["grade"], found["said"]) == ("good", "Cats sleep.")


def test_a_choice_without_a_document_has_neighbours_too_with_their_votes_as_its_score(
    choice_manifest: Manifest,
) -> None:
    plain = choice_manifest.model_copy(update={"retrieval": RetrievalDefaults()})
    learnt = [row("", f"may I park here {n}", "no" if n < 5 else "yes") for n in range(7)]
    found = baselines(plain, learnt)
    assert list(found) == ["prior", "tf-idf"]
    answer = found["tf-idf"]([row("", "can I park", None)])[0].output
    assert answer == {"verdict": "no", "score": pytest.approx(5 / 7)}


def test_a_baseline_needs_rows_that_say_what_is_right(
    choice_manifest: Manifest, marks_manifest: Manifest
) -> None:
    with pytest.raises(InputError, match="no row says what is right"):
        baselines(choice_manifest, [row("a", "q", None)])
    with pytest.raises(InputError, match="does not hold its document's text"):
        baselines(marks_manifest, [Row({}, {"clauses": []}, "a")])


def test_sentences_are_labelled_by_the_nearest_of_the_training_documents(
    marks_manifest: Manifest,
) -> None:
    def deed(rent: str, group: str) -> Row:
        text = f"This deed is dated now.\n\nThe tenant shall pay a rent of {rent} pounds.\n\nAnn."
        start = text.index("The tenant")
        mark = {"category": "duty", "start": start, "end": text.index("\n\nAnn")}
        return Row({"document": text}, {"clauses": [mark]}, group)

    learnt = [deed(str(n), str(n)) for n in range(9)]
    (found,) = baselines(marks_manifest, learnt)["tf-idf"]([deed("fifty", "x")])
    assert [mark["category"] for mark in found.output["clauses"]] == ["duty"]
    mark = found.output["clauses"][0]
    assert mark["quote"].startswith("The tenant shall pay a rent of fifty")
    assert mark["score"] > 0.9
    assert found.output["names"] == []
    (nothing,) = baselines(marks_manifest, learnt)["tf-idf"]([Row({"document": ""}, None, "y")])
    assert nothing.output == {"clauses": [], "names": []}


# ---------------------------------------------------------------- pictures


def test_pictures_are_the_same_for_the_same_values(
    choice_manifest: Manifest, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        folder.mkdir()
        drawn = draw_all(folder, measured(choice_manifest))
        assert [path.name for path in drawn] == ["confusion.svg", "reliability.svg"]
    for path in one.iterdir():
        assert path.read_bytes() == (other / path.name).read_bytes()
        assert ElementTree.parse(path).getroot().tag.endswith("svg")


def test_each_label_of_a_written_output_has_its_confusion_if_it_can_be_read(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    manifest = Manifest(
        name="writer",
        description="Writes.",
        instructions="Write.",
        input={"type": "object"},
        output={
            "type": "object",
            "properties": {
                "topic": {"enum": [f"topic {number}" for number in range(40)]},
                "grade": {"enum": ["good", "bad"]},
                "tone": {"enum": ["calm", "rude"]},
            },
        },
        prompt={"question": "{{ input }}"},
        answer={"kind": "generate"},
    )
    said = {"topic": "topic 1", "grade": "good", "tone": "calm"}
    rows = [Row({}, said, str(number)) for number in range(3)]
    found = evaluate(
        manifest,
        rows,
        {"skill": lambda rows: [Prediction(said) for _ in rows]},
        text_of=lambda input: "",
    )
    drawn = draw_all(tmp_path, found)
    assert [path.name for path in drawn] == ["confusion-grade.svg", "confusion-tone.svg"]


def test_marks_have_pictures_of_precision_and_recall_and_of_how_sure_they_are(
    marks_manifest: Manifest, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    mark = {"category": "duty", "quote": "Pay.", "start": 0, "end": 4, "score": 0.9}
    rows = [Row({"document": "Pay."}, {"clauses": [mark]}, "a")]

    def predict(some: Sequence[Row]) -> list[Prediction]:
        return [Prediction({"clauses": [mark]}) for _ in some]

    found = evaluate(
        marks_manifest, rows, {"mine": predict}, text_of=text_reader(marks_manifest, str)
    )
    assert found is not None
    drawn = [path.name for path in draw_all(tmp_path, found)]
    assert drawn == ["precision_recall.svg", "reliability.svg"]
    assert "recall" in (tmp_path / "precision_recall.svg").read_text("utf-8")
