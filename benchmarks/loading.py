"""How long the 5th, the 50th and the 500th skill take to load, and what each keeps in memory.

Rank 4 on all seven modules, through the whole install gate: read, checked, put into the modules
and proven to act.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

from common import Metric, arguments, at_most, finish
from engine_common import backbone_folder, exact_backbone, random_skills
from safetensors.torch import load_file

from agentkit.engine.engine import Engine
from agentkit.settings import Settings

NEAR = 5
"""Loads around each of the named ones whose median is taken."""


def main() -> int:
    parser = arguments(__doc__ or "")
    parser.add_argument("--at", type=int, nargs=3, default=[5, 50, 500])
    options = parser.parse_args()
    base = backbone_folder()
    with tempfile.TemporaryDirectory() as scratch:
        skills = random_skills(Path(scratch), base, options.at[-1] + NEAR, rank=4)
        tensors = load_file(skills[0].path / "adapter_model.safetensors").values()
        stored = sum(tensor.nbytes for tensor in tensors)
        seconds = []
        with Engine(
            exact_backbone(base), settings=Settings(adapter_memory_bytes=8_000_000_000)
        ) as engine:
            for skill in skills:
                began = time.perf_counter()
                engine.load(skill)
                seconds.append(time.perf_counter() - began)
            resident = engine.skill_statistics.bytes / len(skills)
    took = {at: statistics.median(seconds[max(0, at - NEAR) : at + NEAR]) for at in options.at}
    first, _, last = options.at
    metrics = [Metric(f"load_number_{at}", 1e3 * value, "ms") for at, value in took.items()]
    metrics += [
        at_most("last_over_first", took[last] / took[first], 1.5, "x"),
        Metric("bytes_per_skill", resident, "bytes"),
        at_most("bytes_over_tensors", resident / stored, 1.1, "x"),
    ]
    return finish("loading", metrics, options.json)


if __name__ == "__main__":
    sys.exit(main())
