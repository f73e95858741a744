"""Pictures of an evaluation as SVG: confusion, precision against recall, calibration.

By matplotlib, the optional extra `plots`. The same values always give the same file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from agentkit.evaluation.report import Evaluation
from agentkit.evaluation.text_scorer import MOST_SHOWN
from agentkit.pictures import picture
from agentkit.types import Json

_BLUE, _GREY = "#2f5d8a", "#888888"


def draw_all(folder: Path, evaluation: Evaluation) -> list[Path]:
    """Draw every picture that the evaluation has values for; returns the files.

    Raises `MissingExtraError` without matplotlib.
    """
    details = evaluation.skill.details
    drawn = []
    confusions = {"": details["confusion"]} if "confusion" in details else {}
    for name, one in (confusions | details.get("confusions", {})).items():
        if len(one["labels"]) <= MOST_SHOWN:
            drawn.append(folder / (f"confusion-{name}.svg" if name else "confusion.svg"))
            draw_confusion(drawn[-1], one)
    if "curve" in details:
        drawn.append(folder / "precision_recall.svg")
        draw_curves(
            drawn[-1],
            {
                name: one.details["curve"]
                for name, one in evaluation.subjects.items()
                if "curve" in one.details
            },
        )
    if any(one["rows"] for one in details.get("reliability", ())):
        drawn.append(folder / "reliability.svg")
        draw_reliability(drawn[-1], details["reliability"])
    return drawn


def draw_confusion(path: Path, confusion: Json) -> None:
    """Draw right classes against said ones, shaded by the share of each right class's rows."""
    labels, rows = confusion["labels"], confusion["rows"]
    columns = [*labels, "(none)"] if any(row[-1] for row in rows) else labels
    side = 2.4 + 0.5 * len(columns)
    with picture(path, (side + 0.6, side)) as axes:
        shares = [[count / max(sum(row), 1) for count in row[: len(columns)]] for row in rows]
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for at, row in enumerate(rows):
            for place, count in enumerate(row[: len(columns)]):
                dark = shares[at][place] > 0.5
                axes.text(
                    place,
                    at,
                    str(count),
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="white" if dark else "black",
                )
        axes.set_xticks(range(len(columns)), columns, rotation=45, ha="right", fontsize=8)
        axes.set_yticks(range(len(labels)), labels, fontsize=8)
        axes.set(xlabel="said", ylabel="right", title="Confusion")


def draw_curves(path: Path, curves: Mapping[str, Json]) -> None:
    """Draw precision against recall, a line for each curve."""
    with picture(path, (5, 4)) as axes:
        for number, (name, curve) in enumerate(curves.items()):
            axes.plot(
                curve["recall"],
                curve["precision"],
                color=_BLUE if number == 0 else f"C{number}",
                label=name,
            )
        axes.axvline(0.8, color=_GREY, linestyle="--", linewidth=1)
        axes.set(
            xlabel="recall",
            ylabel="precision",
            xlim=(0, 1),
            ylim=(0, 1.02),
            title="Precision and recall",
        )
        if len(curves) > 1:
            axes.legend(frameon=False, fontsize=8)


def draw_reliability(path: Path, bins: Json) -> None:
    """Draw how often an answer is right against how sure it was; dots grow with the rows."""
    held = [one for one in bins if one["rows"]]
    most = max(one["rows"] for one in held)
    with picture(path, (4.6, 4.2)) as axes:
        axes.plot([0, 1], [0, 1], color=_GREY, linestyle="--", linewidth=1)
        axes.scatter(
            [one["confidence"] for one in held],
            [one["accuracy"] for one in held],
            s=[15 + 120 * one["rows"] / most for one in held],
            color=_BLUE,
        )
        axes.set(
            xlabel="confidence",
            ylabel="share right",
            xlim=(0, 1.02),
            ylim=(0, 1.02),
            title="Calibration",
        )
