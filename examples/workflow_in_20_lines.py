"""A contract review in at most twenty lines of Python.

    python examples/workflow_in_20_lines.py

No step names a skill: the controller picks one for each from its instruction. Prints the facts of a
non-disclosure agreement, and a verdict for each rule of a playbook.
"""

from pathlib import Path

from agentkit import Kit, Workflow

here = Path(__file__).parent
contract = "{{ inputs.contract }}"
review = Workflow("review").input("contract", "document").input("playbook", "playbook")
find = "Find the clauses and facts of this contract."
review.step("parse", instruction=find, input={"document": contract})
check = "Check whether the document complies with this rule of the playbook."
asked = {"rule": "{{ item.text }}", "document": contract}
review.step("review", for_each="inputs.playbook.rules", instruction=check, input=asked)
facts = "{{ steps.parse.output.facts | default([]) }}"
review.output("facts", facts).output("reviews", "{{ steps.review }}")
with Kit() as kit:
    files = {"contract": here / "documents/nda.md", "playbook": here / "playbooks/nda.md"}
    outputs = kit.compile(review.spec()).run(files).outputs
for fact in outputs["facts"]:
    print(f"{fact['name']}: {fact['value']}")
for one in outputs["reviews"]:
    print(f"{one['output']['verdict']:>13}  {one['item']['text']}")
