"""The behaviour list names each test of each suite, and no other."""

import inspect
import re
from pathlib import Path

from datalayer.testing import contract

README = Path(__file__).with_name("README.md")


def listed(text: str) -> set[tuple[str, str]]:
    """(suite, test) of each line of a list under a heading that names a suite."""
    found = set()
    for section in text.split("\n## ")[1:]:
        (suite,) = re.findall(r"\(`(\w+Suite)`\)", section.splitlines()[0])
        found |= {(suite, test) for test in re.findall(r"^- .*: `(test_\w+)`$", section, re.MULTILINE)}
    return found


def shipped() -> set[tuple[str, str]]:
    """(suite, test) of each suite's own tests."""
    suites = [getattr(contract, name) for name in contract.__all__ if name.endswith("Suite")]
    return {
        (suite.__name__, name)
        for suite in suites
        for name, member in vars(suite).items()
        if name.startswith("test_") and inspect.isfunction(member)
    }


def test_the_behaviour_list_names_every_test() -> None:
    assert listed(README.read_text()) == shipped()


def test_a_missing_line_is_noticed() -> None:
    text = README.read_text()
    line = next(line for line in text.splitlines() if line.startswith("- "))
    assert listed(text.replace(line, "")) != shipped()
