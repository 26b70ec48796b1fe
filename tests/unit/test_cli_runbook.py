"""The runbook has a page for each reason that `why` can give, and its commands exist."""

import ast
import re
from pathlib import Path

import click
import pytest

from datalayer.cli.app import COMMANDS, app
from datalayer.migrators import status

RUNBOOK = Path(__file__).parents[2] / "docs" / "runbook"


def given_reasons(source: str) -> set[str]:
    found = {"finished"}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "because":
            assert isinstance(node.args[0], ast.Constant)
            assert isinstance(node.args[0].value, str)
            found.add(node.args[0].value)
    return found


def test_each_reason_has_a_page_and_each_page_is_listed() -> None:
    reasons = given_reasons(Path(status.__file__).read_text())
    assert len(reasons) >= 9
    pages = {path.stem for path in RUNBOOK.glob("*.md")} - {"README", "restored_control_store"}
    assert pages == reasons
    listed = set(re.findall(r"\[(\w+)\]\(\1\.md\)", (RUNBOOK / "README.md").read_text()))
    assert listed == pages


def test_a_new_reason_would_be_noticed() -> None:
    assert "planted" in given_reasons("def f():\n    because('planted', 'x', 'y')\n")


@pytest.mark.parametrize("page", sorted(RUNBOOK.glob("*.md")), ids=lambda path: path.stem)
def test_every_command_named_exists(page: Path) -> None:
    context = click.Context(app)
    for words in re.findall(r"`datalayer ([a-z ]+)", page.read_text()):
        name, *rest = words.split()
        command = app.get_command(context, name)
        assert command is not None, words
        assert name in COMMANDS
        if isinstance(command, click.Group):
            assert rest[0] in command.commands, words
