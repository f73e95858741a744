"""Pictures as SVG files, by matplotlib, the optional extra `plots`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from agentkit.errors import MissingExtraError


@contextmanager
def picture(path: Path, size: tuple[float, float]) -> Iterator[Any]:
    """The axes of a figure of `size` inches that is written to `path` at the end.

    The same drawing always gives the same file. Raises `MissingExtraError` without matplotlib.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "plots", "drawing a picture") from error
    # Text stays text, and ids are made from a fixed salt, so that a picture can be compared.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "agentkit"}):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        axes.spines[["top", "right"]].set_visible(False)
        yield axes
        figure.savefig(path, format="svg", metadata={"Date": None})
