"""Lives with a search index: messages or users are written and move, the index is rebuilt and moves, in any order and under
every disaster; at the end every index must hold just what the store holds.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Final

from datalayer.domains.search import document_of
from datalayer.migrators.coordinator import Coordinator
from datalayer.migrators.options import MigrateOptions
from datalayer.migrators.plan import Until
from datalayer.routing.indexes import SEARCH
from datalayer.stores.memory.server import MemoryServer
from datalayer.testing.simulation.checks import differences, records_at
from datalayer.testing.simulation.life import COMMANDS, Life, Plan
from datalayer.testing.simulation.matrix import Matrix
from datalayer.testing.simulation.world import Pair, World

if TYPE_CHECKING:
    from collections.abc import Mapping

    from datalayer.control.base import Migration
    from datalayer.domains.record import Key, Record
    from datalayer.errors import PreconditionFailed
    from datalayer.routing.route import Place
    from datalayer.testing.simulation.world import Command, Process

INDEXES: Final = ("i", "j")
STEP_S: Final = 0.5
STEPS: Final = 240


class IndexedWorld(World):
    """A world whose search lies in a server of its own, with another one to go to."""

    def _make_servers(self) -> dict[str, MemoryServer]:
        return {**super()._make_servers(), **{name: MemoryServer(name, self.clock) for name in INDEXES}}

    def _config(self) -> dict[str, Any]:
        document = super()._config()
        document["routes"][SEARCH] = INDEXES[0]
        return document

    async def start(self, name: str = "app") -> Process:
        """Start a process; it keeps the indexes in step, too."""
        process = await super().start(name)

        async def begin() -> None:
            process.layer.indexer.start()

        await self.loop.spawn(process.machine, begin(), name=f"{process.machine.name}/indexer")
        return process

    def index_command(self, name: str, options: MigrateOptions, act: Any, **more: Any) -> Command:
        """Start a coordinator of the index on a machine of its own."""
        machine, wire = self.machine(name)
        dead = (*options.assume_dead, *self.dead)
        coordinator = Coordinator(
            self.places(machine, wire, self.machine_clock()),
            SEARCH,
            holder=machine.name,
            options=replace(options, assume_dead=dead),
            **more,
        )
        command = self.run_command(machine, wire, act(coordinator))
        command.coordinator = coordinator
        return command


class IndexOracle:
    """What every index of a world must come to hold."""

    def __init__(self, world: World) -> None:
        self.world = world

    def live(self) -> Migration | None:
        """The unfinished migration of the index."""
        found = self.world.control.migrations_of(SEARCH)
        return next((migration for migration in found if not migration.finished), None)

    async def agree(self) -> None:
        """Every index that is asked, or may be, comes to hold what the sources hold, and nothing else."""
        wrong: list[str] = []
        for _ in range(STEPS):
            wrong = self._wrong()
            if not wrong:
                self.world.hits["index compared"] += 1
                return
            await self.world.elapse(STEP_S)
        for line in wrong:
            self.world.broken("I5", f"the index is out of step: {line}")

    def _wrong(self) -> list[str]:
        wrong = []
        routing = self.world.control.routes[SEARCH]
        live = self.live()
        filled = live is not None and "backfilled" in live.milestones
        sides = [routing.authority, *([routing.mirror] if routing.mirror and filled else [])]
        for place in sides:
            wrong += [f"{place}: {line}" for line in differences(SEARCH, self._documents(), self._held(place))]
            if place is not routing.authority:
                self.world.hits["both indexes compared"] += 1
        return wrong

    def _documents(self) -> dict[Key, Record]:
        found: dict[Key, Record] = {}
        for domain in ("messages", "users"):
            authority = self.world.control.routes[domain].authority
            for record in records_at(self.world, domain, authority).values():
                document = document_of(record)
                if document is not None:
                    found[document.ident] = document
        return found

    def _held(self, place: Place) -> dict[Key, Record]:
        table = self.world.servers[place.backend].tables.get((SEARCH, place.attempt))
        return {} if table is None else dict(table.records)


class IndexedLife(Life):
    """One run of one seed."""

    def _planned(self, seed: int, pair: Pair | None) -> Plan:
        rng = random.Random(f"indexed/{seed}")
        chosen = pair or (Pair(domain="users") if rng.random() < 0.25 else None)
        return super()._planned(seed, chosen)

    def __init__(self, seed: int, pair: Pair | None = None, *, commands: int = COMMANDS + 2) -> None:
        super().__init__(seed, pair, commands=commands)

    def _make_world(self, seed: int) -> IndexedWorld:
        plan = self.plan
        return IndexedWorld(seed, plan.pair, eager=plan.eager, assist=plan.assist, pushes=plan.pushes)

    @property
    def _indexed(self) -> IndexedWorld:
        assert isinstance(self.world, IndexedWorld), "made above"
        return self.world

    def _breakable(self) -> tuple[str, ...]:
        return (*super()._breakable(), *INDEXES)

    def _command(self, rng: random.Random) -> Command:
        if rng.random() < 0.5:
            return super()._command(rng)
        until = rng.choice((Until.TARGET, Until.TARGET, Until.COMPLETE, Until.VERIFIED, Until.DUAL))
        options = MigrateOptions(
            until=until, yes=True, workers=rng.choice((1, 2)), ack_timeout_s=rng.choice((1.0, 6.0))
        )
        to = rng.choice(INDEXES)
        acts: list[tuple[str, Any]] = [
            ("migrate", lambda c: c.migrate(self._index_target(to))),
            ("migrate", lambda c: c.migrate(self._index_target(to))),
            ("migrate", lambda c: c.migrate(self._index_target(to))),
            ("rollback", Coordinator.rollback),
            ("complete", Coordinator.complete),
            ("cancel", Coordinator.cancel),
            ("purge", Coordinator.purge),
        ]
        name, act = rng.choice(acts)
        self.note(f"index: {name} to {to} (until {until})")
        self.world.hits[f"index {name}"] += 1
        return self._indexed.index_command(f"index-{name}", options, act, patience_s=6.0)

    def _index_target(self, to: str) -> str:
        live = IndexOracle(self.world).live()
        return to if live is None else live.target.backend

    async def _judge_all(self) -> None:
        await super()._judge_all()
        await IndexOracle(self.world).agree()


INDEXED_JOURNEYS: Final[Mapping[str, tuple[str, ...]]] = {
    "over, back, cancel": ("target", "back", "cancel"),
    "over, complete, purge": ("target", "complete", "purge"),
    "the index over, back, cancel": ("index target", "index back", "index cancel"),
    "a rebuild, completed and purged": ("index rebuild", "index complete", "index purge"),
    "the index over while messages are": ("target", "index target", "complete", "index complete"),
}


class IndexedMatrix(Matrix):
    """The crash matrix with an index beside: of moves of messages, of moves and rebuilds of the index, and of both."""

    journeys: ClassVar[Mapping[str, tuple[str, ...]]] = INDEXED_JOURNEYS

    def _make_world(self, pair: Pair, *, assist: bool) -> IndexedWorld:
        return IndexedWorld(1, pair, eager=False, assist=assist)

    async def _judge(self) -> None:
        await super()._judge()
        await IndexOracle(self.world).agree()

    def _command(self, step: str) -> Command:
        if not step.startswith("index "):
            return super()._command(step)
        assert isinstance(self.world, IndexedWorld), "made above"
        acts: dict[str, Any] = {
            "index target": lambda c: c.migrate(INDEXES[1]),
            "index rebuild": lambda c: c.migrate(INDEXES[0]),
            "index back": Coordinator.rollback,
            "index complete": Coordinator.complete,
            "index cancel": Coordinator.cancel,
            "index purge": Coordinator.purge,
        }
        options = MigrateOptions(until=Until.TARGET, yes=True, workers=1, ack_timeout_s=10.0)
        command = self.world.index_command(
            step.replace(" ", "-"), options, acts[step], failpoints=self.numbered, patience_s=20.0
        )
        self.numbered.attach(command)
        return command

    def _done_already(self, step: str, error: PreconditionFailed) -> bool:
        return super()._done_already(step.removeprefix("index "), error)

    def _arrived(self) -> None:
        last = self._steps[-1]
        if not last.startswith("index "):
            super()._arrived()
            return
        phase = str(self.world.control.routes[SEARCH].phase)
        expected = {"index cancel": "source", "index complete": "complete", "index purge": "complete"}[last]
        if phase != expected:
            self.world.broken("I7", f"after {self._steps} the phase of the index is {phase}")


__all__ = ["INDEXED_JOURNEYS", "IndexOracle", "IndexedLife", "IndexedMatrix", "IndexedWorld"]
