"""The checks of test_tidy: each takes a tree of sources and returns its violations, one sentence each.

They read syntax trees, not text, so that a word in a comment or a planted example in a string is no violation.
"""

import ast
import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

FILE_LINES_MAX = 600
FUNCTION_LINES_MAX = 70
FILE_BYTES_MAX = 1 << 20
SLEEP_S_MAX = 0.5
VIRTUAL_TIME = ("tests/simulation/", "datalayer/testing/simulation/")
"""Where a sleep costs nothing: the event loop jumps to its next timer."""
PUBLIC_NAMES_MAX = 25
LINKS = ("cli", "migrators", "schemas")
BANNED_WORDS = frozenset(f"{word}{s}" for word in ("util", "common", "helper", "manager") for s in ("", "s"))
_FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class Tree:
    """The tracked files of a checkout, relative to its root."""

    root: Path
    files: tuple[str, ...]

    @cached_property
    def sources(self) -> dict[str, str]:
        """Text of each Python file by its path; links are left out, their targets are listed themselves."""
        names = [name for name in self.files if name.endswith((".py", ".pyi"))]
        paths = {name: self.root / name for name in names}
        return {name: path.read_text() for name, path in paths.items() if path.is_file() and not path.is_symlink()}

    @cached_property
    def trees(self) -> dict[str, ast.Module]:
        return {name: ast.parse(text) for name, text in self.sources.items()}

    @cached_property
    def nodes(self) -> list[tuple[str, ast.AST]]:
        """Every node of every file, walked once for all rules."""
        return [(name, node) for name, tree in self.trees.items() for node in ast.walk(tree)]


def _words(name: str) -> set[str]:
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z0-9]+", name)}


def links(tree: Tree) -> list[str]:
    folder = tree.root / "datalayer"
    return [
        f"datalayer/{name} is not a link to ../{name}"
        for name in LINKS
        if not (folder / name).is_symlink() or str((folder / name).readlink()) != f"../{name}"
    ]


def file_lengths(tree: Tree) -> list[str]:
    lengths = {name: len(text.splitlines()) for name, text in tree.sources.items() if name.endswith(".py")}
    return [f"{name} has {n} lines (<= {FILE_LINES_MAX})" for name, n in lengths.items() if n > FILE_LINES_MAX]


def function_lengths(tree: Tree) -> list[str]:
    return [
        f"{name}:{node.lineno} {node.name} has {lines} lines (<= {FUNCTION_LINES_MAX})"
        for name, node in tree.nodes
        if isinstance(node, _FUNCTION)
        and (lines := (node.end_lineno or node.lineno) - node.lineno + 1) > FUNCTION_LINES_MAX
    ]


def banned_names(tree: Tree) -> list[str]:
    in_paths = [
        f"{name}: a path may not say {', '.join(sorted(bad))}"
        for name in tree.sources
        if (bad := _words(name.rsplit(".", 1)[0]) & BANNED_WORDS)
    ]
    in_code = [
        f"{name}:{node.lineno} {node.name}: a name may not say {', '.join(sorted(bad))}"
        for name, node in tree.nodes
        if isinstance(node, (*_FUNCTION, ast.ClassDef)) and (bad := _words(node.name) & BANNED_WORDS)
    ]
    return in_paths + in_code


def file_sizes(tree: Tree) -> list[str]:
    paths = {name: tree.root / name for name in tree.files}
    sizes = {name: path.stat().st_size for name, path in paths.items() if path.is_file()}
    return [f"{name} has {size} bytes (<= 1 MiB)" for name, size in sizes.items() if size > FILE_BYTES_MAX]


def skipped_tests(tree: Tree) -> list[str]:
    banned = {"skip", "skipif", "xfail", "importorskip", "skipTest", "skipIf", "skipUnless", "SkipTest"}
    return [
        f"{name}:{node.lineno} uses {node.attr}: a test runs or is deleted"
        for name, node in tree.nodes
        if isinstance(node, ast.Attribute) and node.attr in banned and name.startswith(("tests/", "datalayer/testing/"))
    ]


def broad_excepts(tree: Tree) -> list[str]:
    def broad(kind: ast.expr | None) -> bool:
        if isinstance(kind, ast.Tuple):
            return any(broad(one) for one in kind.elts)
        return kind is None or (isinstance(kind, ast.Name) and kind.id in {"Exception", "BaseException"})

    return [
        f"{name}:{node.lineno} catches everything without saying why on its line"
        for name, node in tree.nodes
        if isinstance(node, ast.ExceptHandler)
        and broad(node.type)
        and "#" not in tree.sources[name].splitlines()[node.lineno - 1]
    ]


def long_sleeps(tree: Tree) -> list[str]:
    def called(func: ast.expr) -> str:
        return func.attr if isinstance(func, ast.Attribute) else func.id if isinstance(func, ast.Name) else ""

    return [
        f"{name}:{node.lineno} sleeps {node.args[0].value} s: wait for an event instead"
        for name, node in tree.nodes
        if isinstance(node, ast.Call)
        and called(node.func) == "sleep"
        and node.args
        and isinstance(node.args[0], ast.Constant)
        and isinstance(node.args[0].value, int | float)
        and node.args[0].value >= SLEEP_S_MAX
        and not name.startswith(VIRTUAL_TIME)
    ]


def public_names(tree: Tree) -> list[str]:
    """``__all__`` of the package is a literal, sorted, short list."""
    for node in tree.trees["datalayer/__init__.py"].body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
            assert isinstance(node, ast.Assign | ast.AnnAssign)
            assert node.value is not None
            names = ast.literal_eval(node.value)
            return [f"__all__ has {len(names)} names (<= {PUBLIC_NAMES_MAX})"] if len(names) > PUBLIC_NAMES_MAX else []
    return ["datalayer/__init__.py has no literal __all__"]


def listed_packages(tree: Tree) -> list[str]:
    """pyproject.toml lists each package folder, and no other."""
    project = tomllib.loads((tree.root / "pyproject.toml").read_text())
    listed = set(project["tool"]["setuptools"]["packages"])
    found = set()
    for name in tree.sources:
        folder, _, file = name.rpartition("/")
        top = folder.split("/")[0]
        if file == "__init__.py" and top in {"datalayer", *LINKS}:
            found.add(("" if top == "datalayer" else "datalayer.") + folder.replace("/", "."))
    missing = [f"pyproject.toml does not list the package {name}" for name in sorted(found - listed)]
    return missing + [f"pyproject.toml lists {name}, which has no __init__.py" for name in sorted(listed - found)]


def dead_files(tree: Tree) -> list[str]:
    """A module of the package that no other file imports or names in a string (lazy tables do)."""
    mentioned: set[tuple[str, str]] = set()
    for name, node in tree.nodes:
        if isinstance(node, ast.Import):
            mentioned.update((alias.name, name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            mentioned.update((f"{node.module or ''}.{alias.name}".strip("."), name) for alias in node.names)
            mentioned.add((node.module or "", name))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) < 100:
            mentioned.add((node.value.split(":")[0], name))
    dead = []
    for name in tree.sources:
        path, stem = name.removesuffix(".py"), Path(name).stem
        if (
            name.split("/")[0] not in {"datalayer", *LINKS}
            or stem.startswith("__")
            or "/versions/" in name
            or stem == "env"
        ):
            continue
        dotted = path.replace("/", ".")
        if not any(
            where != name and (said in {dotted, f"datalayer.{dotted}"} or said.rsplit(".", 1)[-1] == stem)
            for said, where in mentioned
        ):
            dead.append(f"{name} is imported by nobody")
    return dead


CHECKS: tuple[Callable[[Tree], list[str]], ...] = (
    links,
    file_lengths,
    function_lengths,
    banned_names,
    file_sizes,
    skipped_tests,
    broad_excepts,
    long_sleeps,
    public_names,
    listed_packages,
    dead_files,
)
