"""The tree is kept honest by checks; each check has a planted violation that must turn it red."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import datalayer
from tests.unit import tidy

ROOT = Path(__file__).parents[2]

# The public names of `datalayer`, pinned: a change here is a change of the promise to users.
PUBLIC_NAMES: list[str] = [
    "AlreadyExists",
    "ConfigurationError",
    "Conflict",
    "Conversation",
    "Count",
    "DataLayer",
    "DatalayerError",
    "DeadlineExceeded",
    "InvalidArgument",
    "InvalidCursor",
    "LayerOptions",
    "Listed",
    "Member",
    "Message",
    "MissingDependencyError",
    "NotFound",
    "OutcomeUnknown",
    "Page",
    "RoutingMismatch",
    "SchemaBehind",
    "Settings",
    "Unavailable",
    "User",
    "load_settings",
]


def tracked(root: Path) -> tuple[str, ...]:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=root, check=True, capture_output=True, text=True)
    return tuple(name for name in listing.stdout.split("\0") if name)


@pytest.fixture(scope="module")
def checkout() -> tidy.Tree:
    return tidy.Tree(ROOT, tracked(ROOT))


@pytest.mark.parametrize("check", tidy.CHECKS, ids=lambda check: check.__name__)
def test_the_tree_is_tidy(check: Callable[[tidy.Tree], list[str]], checkout: tidy.Tree) -> None:
    assert check(checkout) == []


def test_the_checks_look_at_the_whole_tree(checkout: tidy.Tree) -> None:
    folders = {name.split("/")[0] for name in checkout.sources}
    assert {"datalayer", "cli", "migrators", "schemas", "tests", "benchmarks"} <= folders


def test_public_names_are_pinned_and_exist() -> None:
    assert datalayer.__all__ == PUBLIC_NAMES
    assert [name for name in datalayer.__all__ if not hasattr(datalayer, name)] == []


def _clean(root: Path) -> None:
    """A small tree that no check objects to."""
    for folder in ("cli", "migrators", "schemas", "tests"):
        (root / folder).mkdir(parents=True)
        (root / folder / "__init__.py").touch()
    (root / "datalayer").mkdir()
    (root / "datalayer/__init__.py").write_text('__all__ = ["One"]\n')
    for folder in tidy.LINKS:
        (root / "datalayer" / folder).symlink_to(f"../{folder}")
    packages = ["datalayer", *(f"datalayer.{name}" for name in tidy.LINKS)]
    (root / "pyproject.toml").write_text(f"[tool.setuptools]\npackages = {packages}\n")


def _tree(root: Path) -> tidy.Tree:
    paths = (path.relative_to(root) for path in root.rglob("*") if path.is_file())
    return tidy.Tree(root, tuple(sorted(str(path) for path in paths)))


def _unlink(root: Path) -> None:
    (root / "datalayer/cli").unlink()
    (root / "datalayer/cli").mkdir()


def _add_package(root: Path) -> None:
    (root / "cli/sub").mkdir()
    (root / "cli/sub/__init__.py").touch()


def _write(name: str, text: str) -> Callable[[Path], None]:
    def plant(root: Path) -> None:
        (root / name).write_text(text)

    return plant


_SLEEP, _EXCEPT, _SKIP, _XFAIL = "sleep", "except", "skip", "xfail"
_BODY = "    a = 1\n" * 70
PLANTS: list[tuple[Callable[[tidy.Tree], list[str]], Callable[[Path], None], str]] = [
    (tidy.links, _unlink, "datalayer/cli is not a link to ../cli"),
    (tidy.file_lengths, _write("cli/__init__.py", "a = 1\n" * 601), "cli/__init__.py has 601 lines (<= 600)"),
    (
        tidy.function_lengths,
        _write("cli/__init__.py", f"def f():\n{_BODY}"),
        "cli/__init__.py:1 f has 71 lines (<= 70)",
    ),
    (tidy.banned_names, _write("cli/string_utils.py", ""), "cli/string_utils.py: a path may not say utils"),
    (
        tidy.banned_names,
        _write("cli/__init__.py", "class LockManager:\n    pass\n"),
        "cli/__init__.py:1 LockManager: a name may not say manager",
    ),
    (tidy.file_sizes, _write("tests/data.bin", "x" * ((1 << 20) + 1)), "tests/data.bin has 1048577 bytes (<= 1 MiB)"),
    (
        tidy.skipped_tests,
        _write("tests/__init__.py", f"@pytest.mark.{_SKIP}\ndef test_a(): ...\n"),
        "tests/__init__.py:1 uses skip: a test runs or is deleted",
    ),
    (
        tidy.skipped_tests,
        _write("tests/__init__.py", f"@pytest.mark.{_XFAIL}(reason='later')\ndef test_a(): ...\n"),
        "tests/__init__.py:1 uses xfail: a test runs or is deleted",
    ),
    (
        tidy.broad_excepts,
        _write("cli/__init__.py", f"try:\n    f()\n{_EXCEPT} Exception:\n    pass\n"),
        "cli/__init__.py:3 catches everything without saying why on its line",
    ),
    (
        tidy.broad_excepts,
        _write("cli/__init__.py", f"try:\n    f()\n{_EXCEPT} (OSError, BaseException) as error:\n    pass\n"),
        "cli/__init__.py:3 catches everything without saying why on its line",
    ),
    (
        tidy.long_sleeps,
        _write("cli/__init__.py", f"await asyncio.{_SLEEP}(0.5)\n"),
        "cli/__init__.py:1 sleeps 0.5 s: wait for an event instead",
    ),
    (
        tidy.public_names,
        _write("datalayer/__init__.py", f"__all__ = {[f'n{i}' for i in range(26)]}\n"),
        "__all__ has 26 names (<= 25)",
    ),
    (tidy.public_names, _write("datalayer/__init__.py", ""), "datalayer/__init__.py has no literal __all__"),
    (
        tidy.listed_packages,
        _add_package,
        "pyproject.toml does not list the package datalayer.cli.sub",
    ),
    (
        tidy.listed_packages,
        lambda root: (root / "cli/__init__.py").unlink(),
        "pyproject.toml lists datalayer.cli, which has no __init__.py",
    ),
    (tidy.dead_files, _write("migrators/forgotten.py", ""), "migrators/forgotten.py is imported by nobody"),
]


@pytest.mark.parametrize(("check", "plant", "said"), PLANTS, ids=lambda value: getattr(value, "__name__", None))
def test_a_planted_violation_turns_its_check_red(
    tmp_path: Path, check: Callable[[tidy.Tree], list[str]], plant: Callable[[Path], None], said: str
) -> None:
    _clean(tmp_path)
    assert check(_tree(tmp_path)) == []
    plant(tmp_path)
    assert check(_tree(tmp_path)) == [said]


def test_every_check_has_a_planted_violation() -> None:
    assert {check for check, _, _ in PLANTS} == set(tidy.CHECKS)
