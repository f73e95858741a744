"""Writes 500 labelled messages to train on, and 100 in other wordings to measure on.

python examples/own_skill/make_rows.py FOLDER
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

FIRMS = ("Alder Freight", "Bramble & Co", "Cobalt Print", "Dunmore Tools", "Elm Row Bakery")
DATES = ("1 March", "the 15th of June", "30 September", "the end of the quarter", "next Friday")
SUMS = ("$1,250", "4,800 euros", "$93.40", "the full amount", "half of the fee")
THINGS = ("the hosting contract", "our lease", "the supply agreement", "the licence", "the order")

# The last three wordings of each kind are kept for measuring: no training row has them.
WORDINGS: dict[str, tuple[str, ...]] = {
    "termination": (
        "{firm} hereby ends {thing} with effect from {date}.",
        "Please take this as our notice to cancel {thing} on {date}.",
        "We have decided to leave {thing}; our last day will be {date}.",
        "This letter serves to terminate {thing} as of {date}.",
        "After {date} we will no longer be bound by {thing}.",
        "We are giving up {thing} and ask you to confirm the end on {date}.",
        "Kindly close {thing} for {firm}, effective {date}.",
        "We withdraw from {thing}. The period of notice ends on {date}.",
        "We want out of {thing} by {date} at the latest.",
        "Our cooperation under {thing} is over from {date} on.",
        "Consider {thing} cancelled, {date} being its final day.",
    ),
    "renewal": (
        "{firm} would like to extend {thing} for another year from {date}.",
        "Please renew {thing} on the same terms after {date}.",
        "We wish to keep {thing} going beyond {date}.",
        "Could we prolong {thing} by two years, starting {date}?",
        "We take up the option to extend {thing} past {date}.",
        "Let us continue {thing} for a further term from {date}.",
        "{firm} agrees to another period of {thing} as of {date}.",
        "The new term of {thing} should begin on {date}; please confirm the extension.",
        "We are happy to carry on with {thing} once the present term is up on {date}.",
        "Roll {thing} over for twelve more months when it runs out on {date}.",
        "{firm} intends to stay with {thing} for one more term after {date}.",
    ),
    "payment": (
        "The invoice for {sum} under {thing} was due on {date}.",
        "Please transfer {sum} to {firm} by {date}.",
        "We remind you that {sum} is still open for {thing}.",
        "Enclosed is our bill of {sum}, payable by {date}.",
        "We have not received {sum} for {thing} yet.",
        "Your account with {firm} shows {sum} outstanding since {date}.",
        "Interest runs on {sum} from {date} until you pay.",
        "We paid {sum} for {thing} on {date}; please send a receipt.",
        "Kindly settle {sum} before {date} to avoid late charges.",
        "{firm} is owed {sum}; the money should have arrived on {date}.",
        "Would you remit {sum} for {thing} without further delay?",
    ),
    "complaint": (
        "What {firm} delivered under {thing} on {date} was broken.",
        "We are not satisfied with the service under {thing} since {date}.",
        "The goods of {date} do not match what was agreed in {thing}.",
        "{firm} has missed every deadline of {thing} so far.",
        "We object to the quality of the work handed over on {date}.",
        "Half of the parts that came on {date} are faulty; please replace them.",
        "Your people left the site in a mess on {date}, against {thing}.",
        "We ask you to put right the defects that we reported on {date}.",
        "This is the third time that {firm} fails us under {thing}.",
        "Nothing works as promised in {thing}, and nobody answers since {date}.",
        "The installation of {date} leaks, and we expect you to repair it.",
    ),
    "other": (
        "Our offices will be closed on {date}.",
        "{firm} has moved; please note our new address from {date}.",
        "Could you send us a copy of {thing}?",
        "We would like to meet on {date} to talk about plans.",
        "Please welcome our new contact at {firm}, who starts on {date}.",
        "Thank you for your kind wishes of {date}.",
        "Attached are the minutes of our call on {date}.",
        "Who is in charge of {thing} on your side?",
        "Our telephone number changes on {date}.",
        "Is there parking at {firm} for the visit on {date}?",
        "Please add a colleague of mine to the mailing list before {date}.",
    ),
}
KEPT = 3


def rows(count: int, seed: int, *, measuring: bool) -> list[dict[str, dict[str, str]]]:
    """`count` rows, the kinds in turn, each a wording with its blanks filled."""
    chance = random.Random(seed)
    kinds = tuple(WORDINGS)
    made = []
    for number in range(count):
        kind = kinds[number % len(kinds)]
        wordings = WORDINGS[kind][-KEPT:] if measuring else WORDINGS[kind][:-KEPT]
        body = chance.choice(wordings).format(
            firm=chance.choice(FIRMS),
            date=chance.choice(DATES),
            sum=chance.choice(SUMS),
            thing=chance.choice(THINGS),
        )
        greeting = chance.choice(("Dear all,", "To whom it may concern:", "Hello,", ""))
        message = " ".join(part for part in (greeting, body[0].upper() + body[1:]) if part)
        made.append({"input": {"message": message}, "expected": {"kind": kind}})
    return made


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "notice-kind"
    for seed, name, count in ((1, "rows.jsonl", 500), (2, "test.jsonl", 100)):
        made = rows(count, seed, measuring=name == "test.jsonl")
        lines = [json.dumps(row) + "\n" for row in made]
        (folder / name).write_text("".join(lines), encoding="utf-8")
        print(folder / name)


if __name__ == "__main__":
    main()
