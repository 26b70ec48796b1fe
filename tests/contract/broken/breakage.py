"""How a product is broken: one function changes one thing of a correct one."""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")
Change = Callable[[Any], Any]


@dataclasses.dataclass(frozen=True)
class Breakage:
    """One broken promise, the suite that must notice, and the tests of it that must be red."""

    name: str
    suite: type
    red: tuple[str, ...]
    apply: Callable[[Any], None]
    domain: str = "messages"
    authority: str = "transactional"

    def __str__(self) -> str:
        return f"{self.name}-{self.domain}"


class Registry:
    """The breakages of one kind of product, in order of definition."""

    def __init__(self) -> None:
        self.all: list[Breakage] = []

    def breaks(
        self, suite: type, *red: str, domain: str = "messages", authority: str = "transactional"
    ) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
        """Enter a function that breaks a product; a function may be entered for several suites."""

        def enter(function: Callable[[Any], None]) -> Callable[[Any], None]:
            self.all.append(Breakage(function.__name__, suite, red, function, domain, authority))
            return function

        return enter


def replace(owner: Any, name: str, make: Callable[[Any], Any]) -> None:
    """Put another method in the place of one; ``make`` is given the old one."""
    assert hasattr(owner, name), f"{type(owner).__name__} has no {name} to break"
    setattr(owner, name, make(getattr(owner, name)))


class BrokenStores:
    """What a breakage of a store may change: the server, and each store that a client opens."""

    def __init__(self, server: Any) -> None:
        self.server = server
        self.changes: list[Change] = []

    def each_store(self, change: Change) -> None:
        """Change every store that a client gives out."""
        self.changes.append(change)

    def each_guard(self, change: Change) -> None:
        """Change every guard that a store gives out."""

        def on_store(store: Any) -> None:
            def make(guard: Any) -> Any:
                def broken(attempt: int) -> Any:
                    made = guard(attempt)
                    change(made)
                    return made

                return broken

            replace(store, "guard", make)

        self.changes.append(on_store)

    def opened(self, store: Any) -> Any:
        """The store as broken."""
        for change in self.changes:
            change(store)
        return store
