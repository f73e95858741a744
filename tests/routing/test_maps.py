"""The plane in which skills are drawn, and the pictures as files."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.linalg import eigh
from sklearn.covariance import ledoit_wolf
from sklearn.decomposition import PCA

from agentkit.errors import MissingExtraError
from agentkit.routing import maps
from agentkit.routing.controller import Controller
from agentkit.routing.evaluation import Case, Evaluation, evaluate
from agentkit.types import Query

Skills = dict[str, tuple[str, list[str]]]


def groups(count: int, *, rows: int = 40, dimension: int = 12) -> list[Any]:
    draw = np.random.default_rng(count)
    return [draw.normal(size=(rows, dimension)) + draw.normal(size=dimension) for _ in range(count)]


def test_two_groups_are_seen_by_their_principal_components() -> None:
    given = groups(2)
    found = maps.plane(given)
    expected = PCA(2, svd_solver="full").fit_transform(np.vstack(given))
    assert found.method == "pca"
    np.testing.assert_allclose(np.abs(found.project(np.vstack(given))), np.abs(expected), atol=1e-9)


def test_several_groups_are_seen_by_their_linear_discriminants() -> None:
    given = groups(4)
    found = maps.plane(given)
    covariance, share = ledoit_wolf(
        np.vstack([group - group.mean(axis=0) for group in given]), assume_centered=True
    )
    assert 0 < share < 1
    means = np.array([group.mean(axis=0) for group in given])
    between = (means - means.mean(axis=0)).T @ (means - means.mean(axis=0))
    _, vectors = eigh(between, covariance)
    for own, theirs in zip(found.axes.T, vectors.T[::-1], strict=False):
        cosine = own @ theirs / np.linalg.norm(own) / np.linalg.norm(theirs)
        assert abs(cosine) == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (3, 1), (5, 3)])
def test_any_number_of_groups_and_rows_has_a_plane(shape: tuple[int, int]) -> None:
    count, rows = shape
    given = groups(count, rows=rows)
    found = maps.plane(given)
    assert found.axes.shape == (12, 2)
    assert np.isfinite(found.project(np.vstack(given))).all()


def test_many_more_dimensions_than_rows_do_not_make_noise_look_apart() -> None:
    draw = np.random.default_rng(0)
    noise = [draw.normal(size=(12, 384)) for _ in range(4)]
    found = maps.plane(noise)
    fresh = [found.project(draw.normal(size=(200, 384))).mean(axis=0) for _ in range(4)]
    assert np.ptp(fresh, axis=0).max() < 0.5


@pytest.fixture
def evaluation(encoder: Any, skills: Skills) -> Evaluation:
    controller = Controller(encoder)
    controller.fit(skills)
    cases = [Case(Query(text), name) for name, (_, own) in skills.items() for text in own]
    wrong = [Case(Query(text), None) for text in ("find the clauses", "hello", "pay the bill")]
    return evaluate(controller, [*cases, *wrong], resamples=0)


def drawn(path: Path) -> str:
    ElementTree.parse(path)
    return path.read_text(encoding="utf-8")


def test_a_map_names_the_skills_and_shows_the_query_beside_its_nearest_utterances(
    encoder: Any, skills: Skills, tmp_path: Path
) -> None:
    vectors = {name: encoder.encode(own) for name, (_, own) in skills.items()}
    text = "costs $5 & <b> $6, which is a very long text that nobody wants to read to the end of"
    maps.draw_map(
        tmp_path / "map.svg",
        vectors,
        query=encoder.encode(["find the clauses"])[0],
        nearest={"clause-finder": (0, text)},
        wrong=encoder.encode(["hello"]),
    )
    content = drawn(tmp_path / "map.svg")
    for name in (*skills, "query", "routed wrong"):
        assert f">{name}<" in content
    assert "costs $5 &amp; &lt;b&gt; $6, which" in content
    assert "to the end of" not in content
    assert "linear discriminants" in content


def test_many_skills_are_named_at_their_place(tmp_path: Path) -> None:
    names = [f"skill-{k}" for k in range(14)]
    vectors = dict(zip(names, groups(14, rows=4), strict=True))
    maps.draw_map(tmp_path / "map.svg", vectors)
    content = drawn(tmp_path / "map.svg")
    assert all(f">{name}<" in content for name in names)


PICTURES: list[Callable[[Path, Evaluation], None]] = [
    maps.draw_risk_coverage,
    maps.draw_reliability,
    maps.draw_confusion,
]


@pytest.mark.parametrize("draw", PICTURES, ids=lambda draw: draw.__name__)
def test_a_picture_of_an_evaluation_is_the_same_each_time(
    evaluation: Evaluation, tmp_path: Path, draw: Callable[[Path, Evaluation], None]
) -> None:
    draw(tmp_path / "one.svg", evaluation)
    draw(tmp_path / "two.svg", evaluation)
    assert drawn(tmp_path / "one.svg") == drawn(tmp_path / "two.svg")


def test_the_confusion_names_its_skills_and_none(evaluation: Evaluation, tmp_path: Path) -> None:
    maps.draw_confusion(tmp_path / "confusion.svg", evaluation)
    content = drawn(tmp_path / "confusion.svg")
    for name in (*evaluation.skills, "(none)"):
        assert f">{name}<" in content


def test_without_matplotlib_the_extra_is_named(
    evaluation: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"agentkit-skills\[plots\]"):
        maps.draw_risk_coverage(tmp_path / "risk.svg", evaluation)
    assert not (tmp_path / "risk.svg").exists()
