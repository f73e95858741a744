"""The hierarchy of errors is the one that is drawn; a message says what, where and what next."""

from __future__ import annotations

import inspect
import re

import pytest

from agentkit import errors
from agentkit.errors import AgentkitError, InputError, MissingExtraError

CLASSES = {
    name: value
    for name, value in vars(errors).items()
    if inspect.isclass(value) and issubclass(value, AgentkitError)
}


def drawn() -> dict[str, str | None]:
    """Each class of the tree in the module's docstring, with the one that it stands under."""
    parents: dict[str, str | None] = {}
    above: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        if match := re.match(r"([│├└─ ]*)(\w+Error)\b", line):
            depth, name = len(match[1]), match[2]
            above = [(d, n) for d, n in above if d < depth]
            parents[name] = above[-1][1] if above else None
            above.append((depth, name))
    return parents


def test_the_tree_that_is_drawn_is_the_hierarchy() -> None:
    real = {
        name: None if cls is AgentkitError else cls.__base__.__name__
        for name, cls in CLASSES.items()
    }
    assert drawn() == real


@pytest.mark.parametrize("cls", CLASSES.values())
def test_bad_input_exits_with_two_and_failure_with_one(cls: type[AgentkitError]) -> None:
    assert cls.exit_code == (2 if issubclass(cls, InputError) else 1)
    assert cls.__doc__


def test_a_message_says_what_where_and_what_to_do() -> None:
    assert str(AgentkitError("it broke")) == "it broke"
    assert str(AgentkitError("it broke", where="step one")) == "step one: it broke"
    error = AgentkitError("it broke", where="a.yaml:3:4", hint="mend it")
    assert str(error) == "a.yaml:3:4: it broke (mend it)"
    assert (error.what, error.where, error.hint) == ("it broke", "a.yaml:3:4", "mend it")


def test_a_place_that_is_learnt_later_shows_in_the_message() -> None:
    error = AgentkitError("it broke")
    error.where = "step two"
    assert str(error) == "step two: it broke"


def test_a_missing_extra_gives_the_command_that_installs_it() -> None:
    error = MissingExtraError("matplotlib", "plots", "the loss curve")
    assert str(error) == (
        "the loss curve needs the package 'matplotlib' "
        '(install it with: pip install "agentkit-skills[plots]")'
    )
