"""What the suites of control stores need."""

from __future__ import annotations

import random
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from datalayer.clock import Clock, SystemClock
from datalayer.control.base import Migration, ProcessInfo, coordinator_lease
from datalayer.ids import IdSource
from datalayer.routing.route import Phase, Place, Routing
from datalayer.stores.base import Token
from datalayer.testing.contract.fixture import TIMEOUT_S, Waiting

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import TracebackType
    from typing import Self

    from datalayer.control.base import Control


@dataclass(slots=True)
class ControlFixture(Waiting):
    """Clients of one control store. ``connect`` gives another opened one each time; the store may be shared by tests.

    Names of domains, processes, runs and leases are drawn from the seed, so tests of one store do not meet.
    """

    connect: Callable[[], Awaitable[Control]]
    clock: Clock = field(default_factory=SystemClock)
    seed: int = 0
    timeout_s: float = TIMEOUT_S
    random: random.Random = field(init=False)
    ids: IdSource = field(init=False)
    _exits: AsyncExitStack = field(init=False, default_factory=AsyncExitStack)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.ids = IdSource(self.clock, self.random.getrandbits)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._exits.aclose()

    async def control(self) -> Control:
        """Another client."""
        control = await self.connect()
        self._exits.push_async_callback(control.close)
        return control

    def name(self, what: str = "x") -> str:
        """A name that no other test uses."""
        return f"{what}-{self.ids.uuid7().hex[-20:]}"

    async def token(self, control: Control, domain: str, *, attempt: int = 1) -> Token:
        """The token of a coordinator that has just taken the domain's lease."""
        value = await control.take(coordinator_lease(domain), self.name("holder"), 60.0)
        assert value is not None, "the lease of a new domain is free"
        return Token(f"{domain}-m{attempt}", domain, attempt, value)

    async def overtaken(self, control: Control, domain: str) -> tuple[Token, Token]:
        """(token of a coordinator that gave its lease up, token of the one that took it)."""
        old = await self.token(control, domain)
        await control.release(coordinator_lease(domain), old.value)
        return old, await self.token(control, domain)

    def migration(self, token: Token) -> Migration:
        """A new migration of a domain."""
        now = self.clock.now_us()
        source, target = Place("main"), Place("other", token.attempt)
        return Migration(
            token.migration,
            token.domain,
            token.attempt,
            source,
            target,
            "source",
            frozenset(),
            {"rate": 5},
            0,
            now,
            now,
        )

    def routing(self, token: Token, phase: Phase = Phase.DUAL) -> Routing:
        """A routing of the migration that ``migration`` makes."""
        return Routing(
            token.domain,
            0,
            phase,
            Place("main"),
            Place("other", token.attempt),
            token.attempt,
        )

    def process(self, host: str = "host-1", pid: int = 17) -> ProcessInfo:
        """A process that nobody else registers."""
        return ProcessInfo(self.name("process"), host, pid, self.name("boot"), self.name("service"))
