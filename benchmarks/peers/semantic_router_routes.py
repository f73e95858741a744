"""The package semantic-router (1.x) over given vectors, in an interpreter that has it.

    python semantic_router_routes.py FOLDER

FOLDER holds `texts.json` (`train`: utterances by skill; `oos_train`, `test`, `oos_test`: texts) and
`vectors.npz` (`texts`, and a unit vector for each). It writes `routes.json`: for `test` and
`oos_test` the best route with its confidence, and the threshold to hold it against.

Its own `fit` calibrates it, on a fifth of the utterances, held out of its index, and `oos_train`.
The package fits no threshold, so it is given the one under which it does best there: at which the
lesser of accuracy and recall of what is out of scope is highest.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from semantic_router import IndexedRouter, Route
from semantic_router.encoders.base import DenseEncoder


class Given(DenseEncoder):
    """Vectors that were computed before."""

    vectors: dict[str, Any]

    def __call__(self, docs: list[Any]) -> list[list[float]]:
        return [self.vectors[str(text)].tolist() for text in docs]

    async def acall(self, docs: list[Any]) -> list[list[float]]:
        return self(docs)


def main() -> int:
    folder = Path(sys.argv[1])
    texts = json.loads((folder / "texts.json").read_text(encoding="utf-8"))
    with np.load(folder / "vectors.npz") as stored:
        encoder = Given(
            name="given",
            vectors=dict(zip(stored["texts"].tolist(), stored["vectors"], strict=True)),
        )
    train: dict[str, list[str]] = texts["train"]
    part = IndexedRouter(
        encoder,
        [
            Route(name=n, utterances=[u for k, u in enumerate(own) if k % 5])
            for n, own in train.items()
        ],
    )
    held_out = [(text, name) for name, own in train.items() for text in own[::5]]
    taught = [*held_out, *((text, None) for text in texts["oos_train"])]
    part.fit([text for text, _ in taught], [name for _, name in taught])
    threshold = 0.5
    if texts["oos_train"]:
        threshold = balanced(
            asked(part, [text for text, _ in held_out]),
            [name for _, name in held_out],
            asked(part, texts["oos_train"]),
        )
    router = IndexedRouter(
        encoder,
        [Route(name=name, utterances=own) for name, own in train.items()],
        calibrator=part.calibrator,
    )
    found = {
        "test": asked(router, texts["test"]),
        "oos_test": asked(router, texts["oos_test"]),
        "threshold": threshold,
    }
    (folder / "routes.json").write_text(json.dumps(found), encoding="utf-8")
    return 0


def asked(router: IndexedRouter, texts: list[str]) -> list[tuple[str | None, float]]:
    choices = [router(text, threshold=0.0) for text in texts]
    return [(choice.name, float(choice.confidence or 0.0)) for choice in choices]


def balanced(
    inside: list[tuple[str | None, float]],
    wanted: list[str],
    outside: list[tuple[str | None, float]],
) -> float:
    confidence: NDArray[np.float64] = np.array([value for _, value in inside])
    right = np.array([name == want for (name, _), want in zip(inside, wanted, strict=True)])
    others = np.array([value for _, value in outside])
    candidates = np.unique(np.concatenate([confidence, others]))
    worse = [min((right & (confidence >= t)).mean(), (others < t).mean()) for t in candidates]
    return float(candidates[int(np.argmax(worse))])


if __name__ == "__main__":
    sys.exit(main())
