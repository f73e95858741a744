"""A skill dropped into a running process, and taken out again.

    python examples/drop_in_skill.py

Makes an adapter with plain PEFT, writes two text files beside it, and moves the folder into a
folder of skills that a kit is watching: it is listed, routed to and answers without a restart. The
adapter's weights are random, so its answer means nothing; `agentkit train` makes one that does.
"""

import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from agentkit import Kit, StepCall
from agentkit.models import resolve
from agentkit.types import Query

NAME = "clause-summariser"
SKILL_MD = f"""---
name: {NAME}
description: Sums up a clause in one short sentence, for a table of contents.
---
Sum up the clause in one short sentence.
"""
SKILL_YAML = """
input:
  type: object
  properties:
    clause: {type: string}
  required: [clause]
prompt:
  question: "Clause: {{ clause }}"
generation:
  max_tokens: 24
utterances:
  - sum up this clause for a table of contents
  - shorten the clause to a headline
  - give the clause a one-line title
  - condense the provision into a caption
"""
TASK = "Shorten this clause to a headline for the table of contents."
CLAUSE = "Neither party may assign this agreement without the prior written consent of the other."


def make_skill(folder: Path, backbone: Path) -> None:
    """Write a skill folder: an adapter as PEFT saves it, and what the skill says of itself."""
    model = AutoModelForCausalLM.from_pretrained(backbone)
    config = LoraConfig(
        r=4,
        target_modules=["q_proj", "v_proj"],
        init_lora_weights=False,  # random; PEFT would begin with an adapter that changes nothing
        task_type="CAUSAL_LM",
    )
    get_peft_model(model, config).save_pretrained(str(folder))
    (folder / "SKILL.md").write_text(SKILL_MD, encoding="utf-8")
    (folder / "skill.yaml").write_text(SKILL_YAML, encoding="utf-8")


def follow(kit: Kit, what: str, change: Callable[[], object], *, listed: bool) -> None:
    """Make a change to the watched folder and wait until the kit has seen it."""
    seen = threading.Event()
    stop = kit.registry.subscribe(
        lambda snapshot: seen.set() if (NAME in snapshot.skills) == listed else None
    )
    began = time.perf_counter()
    change()
    if not seen.wait(timeout=30):
        raise TimeoutError(f"{what}: not seen within 30 seconds")
    stop()
    seconds = time.perf_counter() - began
    print(f"{what}: seen after {seconds:.2f} s; skills: {', '.join(kit.skills) or 'none'}")


def show_route(kit: Kit) -> None:
    """Print what the controller does with the task now."""
    route = kit.controller().route(Query(TASK))
    print(f"  {TASK!r} -> {route.skill or 'abstains'} ({route.reason})")


def main() -> None:
    """Drop a skill in, use it, and take it out."""
    with tempfile.TemporaryDirectory() as name:
        skills, workshop = Path(name, "skills"), Path(name, "workshop", NAME)
        skills.mkdir()
        with Kit(skills=[skills], watch=True) as kit:
            make_skill(workshop, resolve(kit.settings.backbone, kit.settings, "backbone"))
            print(f"skills: {', '.join(kit.skills) or 'none'}")
            show_route(kit)

            follow(kit, "dropped in", lambda: shutil.move(workshop, skills / NAME), listed=True)
            show_route(kit)
            call = StepCall(step="try", instruction=TASK, input={"clause": CLAUSE})
            (result,) = kit.runner().run([call])
            if isinstance(result, Exception):
                raise result
            print(f"  {result.skill} answers: {result.output!r}")

            follow(kit, "taken out", lambda: shutil.rmtree(skills / NAME), listed=False)
            show_route(kit)


if __name__ == "__main__":
    main()
