"""No pair of stores of any domain without a life cycle test, and no refusal that a user would not understand."""

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from datalayer.domains.movement import movement_of
from datalayer.layer import MOVABLE
from datalayer.migrators.sizes import KINDS
from datalayer.stores.registry import SCHEMES
from tests.pairs import EXCUSED, EXCUSING, KIND_OF, Pair, pairs_of, refusals_of, stores_of

TESTS = Path(__file__).parents[1]
MARK = "life_cycle"
"""`@pytest.mark.life_cycle("search")` on a test that is parametrized by source and target, or by pair."""


def modules() -> Iterator[ModuleType]:
    for folder in ("integration", "acceptance"):
        for path in sorted((TESTS / folder).glob("test_*.py")):
            if f"mark.{MARK}(" in path.read_text() or path.stem == "test_every_pair":
                yield importlib.import_module(f"tests.{folder}.{path.stem}")


def covered_by(module: ModuleType) -> Iterator[Pair]:
    """The pairs that a module's tests are run for, by what they are parametrized with."""
    for function in vars(module).values():
        marks = getattr(function, "pytestmark", []) if callable(function) else []
        domains = [domain for mark in marks if mark.name == MARK for domain in mark.args]
        for mark in marks:
            if mark.name != "parametrize":
                continue
            names, values = mark.args
            if names == "pair":
                yield from (value.values[0] for value in values)
            elif tuple(names) == ("source", "target"):
                named = [tuple(KIND_OF[word] for word in getattr(value, "values", value)) for value in values]
                yield from (Pair(domain, *pair) for domain in domains for pair in named)


def covered() -> set[Pair]:
    return {pair for module in modules() for pair in covered_by(module)}


def test_every_pair_of_stores_of_every_domain_has_a_life_cycle() -> None:
    found = covered()
    missing = [str(pair) for domain in MOVABLE for pair in pairs_of(domain) if pair not in found]
    assert missing == []


def test_a_pair_that_is_left_out_would_be_noticed() -> None:
    found = covered()
    gone = Pair("messages", "Postgres", "Cassandra")
    assert gone in found
    wanted = {pair for domain in MOVABLE for pair in pairs_of(domain)}
    assert wanted - (found - {gone}) >= {gone}


def test_every_store_that_this_version_serves_is_of_a_kind() -> None:
    known = {scheme for kind in KINDS for scheme in kind.schemes}
    assert set(SCHEMES) <= known


@pytest.mark.parametrize("domain", MOVABLE)
def test_every_kind_holds_a_domain_or_says_why_not(domain: str) -> None:
    assert stores_of(domain)
    for kind, reason in refusals_of(domain).items():
        assert domain in reason, f"{kind} refuses {domain} with {reason!r}"
        assert len(reason.split()) >= 3, f"{kind} refuses {domain} with {reason!r}"


def test_only_what_is_stored_or_derived_excuses_a_kind() -> None:
    kinds = {domain: {pair.source for pair in pairs_of(domain)} for domain in MOVABLE}
    for domain, sources in kinds.items():
        excused = set(EXCUSED) & set(stores_of(domain)) if movement_of(domain) in EXCUSING else set()
        assert sources == set(stores_of(domain)) - excused, domain
