"""Figures of a controller, against sums done by hand and against scikit-learn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, recall_score, roc_auc_score

from agentkit.errors import InputError
from agentkit.routing.controller import Controller
from agentkit.routing.evaluation import (
    FIGURES,
    Case,
    Judged,
    cases_from_jsonl,
    evaluate,
    figures_of,
    judge,
    reliability,
    risk_coverage,
)
from agentkit.types import Query, Route

Skills = dict[str, tuple[str, list[str]]]

confidences = st.integers(0, 20).map(lambda k: k / 20)  # coarse, so that ties are common
rows = st.lists(st.tuples(st.booleans(), st.booleans(), confidences), min_size=1, max_size=60)


def judged_of(values: list[tuple[bool, bool, float]], threshold: float = 0.5) -> Judged:
    inside, right, confidence = (np.array(column) for column in zip(*values, strict=True))
    return Judged(inside, right & inside, confidence >= threshold, confidence)


HAND = judged_of(
    [
        (True, True, 0.95),
        (True, False, 0.85),
        (True, True, 0.65),
        (True, True, 0.45),
        (False, False, 0.75),
        (False, False, 0.25),
        (False, False, 0.05),
        (False, False, 0.45),
    ]
)


def test_the_figures_of_eight_rows_are_those_done_by_hand() -> None:
    found = figures_of(HAND)
    assert found["accuracy"] == 5 / 8
    assert found["in_scope_accuracy"] == 3 / 4
    assert found["in_scope_accuracy_with_abstention"] == 2 / 4
    assert found["coverage"] == 3 / 4
    assert found["oos_recall"] == 3 / 4
    assert found["oos_precision"] == 3 / 4
    # of 16 pairs, an in-scope row is above in 4 + 4 + 3 + 2, and equal in one
    assert found["oos_auroc"] == 13.5 / 16
    # by falling confidence: right, wrong, wrong, right, then a tie of right and wrong, wrong, wrong
    risks = [0, 1 / 2, 2 / 3, 2 / 4, 2.5 / 5, 3 / 6, 4 / 7, 5 / 8]
    assert risk_coverage(HAND)[1] == pytest.approx(risks)
    assert risk_coverage(HAND)[0] == pytest.approx([k / 8 for k in range(1, 9)])
    assert found["aurc"] == pytest.approx(sum(risks) / 8)
    # bins 0, 2, 4 (two rows, half right), 6, 7, 8 and 9
    gaps = [0.05, 0.25, 2 * 0.05, 0.35, 0.75, 0.85, 0.05]
    assert found["ece"] == pytest.approx(sum(gaps) / 8)
    assert set(found) == set(FIGURES)


def test_a_bin_holds_its_lower_bound_and_the_last_one_its_upper() -> None:
    bins = reliability(judged_of([(True, True, 0.0), (True, False, 0.1), (True, True, 1.0)]))
    assert [one.rows for one in bins] == [1, 1, *[0] * 7, 1]
    assert (bins[9].confidence, bins[9].accuracy) == (1.0, 1.0)
    assert (bins[5].confidence, bins[5].accuracy) == (0.0, 0.0)


@given(values=rows)
def test_figures_agree_with_scikit_learn(values: list[tuple[bool, bool, float]]) -> None:
    judged = judged_of(values)
    found = figures_of(judged)
    assert found["accuracy"] == pytest.approx(accuracy_score(np.ones(len(values)), judged.right))
    inside = judged.inside
    if not inside.all() and inside.any():
        assert found["oos_auroc"] == pytest.approx(roc_auc_score(inside, judged.confidence))
    if not inside.all():
        assert found["oos_recall"] == pytest.approx(recall_score(~inside, ~judged.accepted))
    else:
        assert found["oos_recall"] is None
        assert found["oos_auroc"] is None


@given(values=rows, seed=st.integers(0, 2**32 - 1))
def test_the_order_of_rows_does_not_matter(
    values: list[tuple[bool, bool, float]], seed: int
) -> None:
    order = np.random.default_rng(seed).permutation(len(values))
    shuffled = figures_of(judged_of([values[k] for k in order]))
    for name, value in figures_of(judged_of(values)).items():
        assert shuffled[name] == (value if value is None else pytest.approx(value))


@given(values=rows)
def test_every_figure_lies_within_zero_and_one_and_the_last_risk_is_that_of_all_rows(
    values: list[tuple[bool, bool, float]],
) -> None:
    judged = judged_of(values)
    assert all(v is None or -1e-9 <= v <= 1 + 1e-9 for v in figures_of(judged).values())
    coverage, risk = risk_coverage(judged)
    assert coverage[-1] == 1.0
    assert risk[-1] == pytest.approx((~judged.best_right).mean())


def test_confident_where_right_has_less_area_than_confident_where_wrong() -> None:
    good = judged_of([(True, True, 0.9), (True, True, 0.8), (True, False, 0.1)])
    bad = judged_of([(True, True, 0.1), (True, True, 0.2), (True, False, 0.9)])
    assert figures_of(good)["aurc"] == pytest.approx((0 + 0 + 1 / 3) / 3)
    assert figures_of(bad)["aurc"] == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)


def test_an_abstention_counts_its_best_skill_but_not_as_a_route() -> None:
    cases = [Case(Query("a"), "one"), Case(Query("b"), None), Case(Query("c"), "one")]
    routes = [
        Route(None, 0.3, True, "", {"one": 0.3, "two": 0.1}),
        Route("two", 0.9, False, "", {"two": 0.9, "one": 0.0}),
        Route(None, 0.0, True, ""),
    ]
    judged = judge(cases, routes)
    assert judged.best_right.tolist() == [True, False, False]
    assert judged.right.tolist() == [False, False, False]
    assert judged.confidence.tolist() == [0.3, 0.9, 0.0]


@pytest.fixture
def controller(encoder: Any, skills: Skills) -> Controller:
    controller = Controller(encoder)
    controller.fit(skills)
    return controller


@pytest.fixture
def cases(skills: Skills) -> list[Case]:
    inside = [Case(Query(text), name) for name, (_, own) in skills.items() for text in own]
    return [*inside, Case(Query("play the next song"), None), Case(Query("hello"), None)]


def test_a_controller_is_evaluated_with_intervals_that_hold_the_figures(
    controller: Controller, cases: list[Case]
) -> None:
    found = evaluate(controller, cases, resamples=200)
    for figure in found.figures.values():
        assert figure.value is not None
        assert figure.low is not None
        assert figure.high is not None
        assert figure.low <= figure.high
    accuracy = found.figures["accuracy"]
    assert accuracy.low <= accuracy.value <= accuracy.high
    again = evaluate(controller, cases, resamples=200)
    assert again.to_json() == found.to_json()
    assert json.loads(json.dumps(found.to_json())) == found.to_json()
    assert sum(found.confusion.values()) == len(cases)


def test_the_interval_of_a_share_is_that_of_the_binomial(controller: Controller) -> None:
    cases = [Case(Query(""), None if k < 60 else controller.skills[0]) for k in range(100)]
    figure = evaluate(controller, cases, resamples=2000).figures["accuracy"]
    assert figure.value == pytest.approx(0.6)
    spread = 1.96 * (0.6 * 0.4 / 100) ** 0.5
    assert figure.low == pytest.approx(0.6 - spread, abs=0.02)
    assert figure.high == pytest.approx(0.6 + spread, abs=0.02)


def test_without_resamples_there_are_no_intervals(
    controller: Controller, cases: list[Case]
) -> None:
    figure = evaluate(controller, cases, resamples=0).figures["accuracy"]
    assert (figure.low, figure.high) == (None, None)


def test_nothing_to_evaluate_and_an_unknown_skill_are_refused(controller: Controller) -> None:
    with pytest.raises(InputError, match="no rows"):
        evaluate(controller, [])
    with pytest.raises(InputError, match="there is no skill 'poet'"):
        evaluate(controller, [Case(Query("x"), "poet"), Case(Query("y"), None)])


def test_rows_are_read_with_their_text_skill_and_excerpt(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(
        '{"text": "a\u2028b", "skill": "one"}\n\n'
        '{"instruction": "c", "skill": null, "input": "d", "id": 7}\n',
        encoding="utf-8",
    )
    assert cases_from_jsonl(file, ["one"]) == [
        Case(Query("a\u2028b"), "one"),
        Case(Query("c", "d"), None),
    ]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("{", "not valid JSON"),
        ("[]", "a row is"),
        ('{"text": "a"}', "a row is"),
        ('{"text": 1, "skill": null}', "a row is"),
        ('{"text": "a", "skill": 1}', "a row is"),
        ('{"text": "a", "skill": null, "input": {}}', '"input" is the start'),
        ('{"text": "a", "skill": "poet"}', "there is no skill 'poet'"),
    ],
)
def test_a_malformed_row_is_named_by_its_line(tmp_path: Path, row: str, said: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "a", "skill": null}\n' + row + "\n", encoding="utf-8")
    with pytest.raises(InputError) as caught:
        cases_from_jsonl(file, ["one"])
    assert caught.value.where == f"{file}:2"
    assert said in str(caught.value)


def test_a_file_that_is_not_there_or_holds_no_row_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read it"):
        cases_from_jsonl(tmp_path / "none.jsonl", [])
    (tmp_path / "empty.jsonl").write_text("\n", encoding="utf-8")
    with pytest.raises(InputError, match="no rows"):
        cases_from_jsonl(tmp_path / "empty.jsonl", [])
