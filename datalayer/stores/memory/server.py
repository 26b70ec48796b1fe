"""The data of an in-memory product: what stays when every client has crashed.

Everything here is synchronous, so each method is one atomic step of the server; ``backend`` is the client that calls
them over a wire that may fail. No I/O, no clock and no random source of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

from datalayer.domains.record import Key, Record
from datalayer.domains.registry import DOMAINS, KINDS
from datalayer.errors import Fenced, LostLease, MigrationError, Quarantine, StaleRoute
from datalayer.stores.base import Entry
from datalayer.stores.memory import reference
from datalayer.stores.memory.outbox import Following
from datalayer.stores.memory.side import Side
from datalayer.stores.memory.soft import SoftTable
from datalayer.stores.memory.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from datalayer.clock import Clock
    from datalayer.stores.base import AuthorityClass, Executed, MetaRow, Token

PlaceKey = tuple[str, int]
"""(domain, attempt whose number the tables carry)."""
_INT64: Final = 1 << 63


class MemoryServer:
    """One product in memory, shared by any number of clients of this process.

    ``authority_class`` says whether it runs mutations itself (like SQL: key order, journal and fence) or is a plain
    last-writer-wins store (like Cassandra: token order, equal versions decided by the greater cell). ``refuse`` names
    records that this product cannot take, beyond what no product can. ``up = False`` is an outage.
    """

    def __init__(
        self,
        name: str,
        clock: Clock,
        *,
        authority_class: AuthorityClass = "transactional",
        refuse: Callable[[Record], str | None] | None = None,
    ) -> None:
        self.name = name
        self.clock = clock
        self.authority_class: Final = authority_class
        self.refuse = refuse
        self.up = True
        self.forgetful = False
        """Whether it stands for a product that may lose what it has acknowledged, and then begins another ``life``."""
        self.life = 0
        self.reach: Literal["process", "network"] = "process"
        """What soft domains say of it: ``network`` where it stands for a product that every process reaches."""
        self.tables: Final[dict[PlaceKey, Table]] = {}
        self.meta: Final[dict[tuple[str, int], MetaRow]] = {}
        self.tokens: Final[dict[str, int]] = {}
        self.objects: Final[dict[int, dict[str, tuple[bytes, int]]]] = {}
        """Media by attempt and name: bytes, and when they were written."""
        self._sides: Final[dict[PlaceKey, dict[int, Side]]] = {}
        self.following: Final[dict[PlaceKey, dict[int, Following]]] = {}
        """The outboxes of each place, by the attempt of the index."""
        self._soft: Final[dict[PlaceKey, SoftTable]] = {}

    # places
    def create(self, place: PlaceKey) -> None:
        """Make a place if it is absent."""
        if place not in self.tables:
            ring = self.authority_class == "last_writer"
            self.tables[place] = Table(DOMAINS[place[0]].kinds, hashed=ring, ties=ring)

    def drop(self, place: PlaceKey) -> None:
        """Forget a place, its guards too."""
        self.tables.pop(place, None)
        self._sides.pop(place, None)
        self.following.pop(place, None)

    def table(self, place: PlaceKey) -> Table:
        """The records of a place; StaleRoute when it is gone."""
        table = self.tables.get(place)
        if table is None:
            msg = f"{place[0]} of attempt {place[1]} is not in {self.name} any more"
            raise StaleRoute(msg)
        return table

    def soft_table(self, place: PlaceKey) -> SoftTable:
        """What is kept of a soft domain's place, made when it is first asked for."""
        if place not in self._soft:
            self._soft[place] = SoftTable(place[0])
        return self._soft[place]

    def drop_soft(self, place: PlaceKey) -> None:
        """Forget a soft domain's place."""
        self._soft.pop(place, None)

    # records
    def check(self, record: Record) -> str | None:
        """Why no such record can be stored here, or None."""
        numbers = [record.version, *(value for value in record.fields if isinstance(value, int))]
        if not all(-_INT64 <= value < _INT64 for value in numbers):
            return "a number does not fit into 64 bits"
        try:
            for value in record.fields:
                if isinstance(value, str):
                    value.encode()
        except UnicodeEncodeError:
            return "a text contains a lone surrogate"
        return None if self.refuse is None else self.refuse(record)

    def apply(self, place: PlaceKey, records: Sequence[Record]) -> None:
        """The port's apply by a plain writer: fenced and journalled like everybody's."""
        self._refuse_fenced(place)
        table = self.table(place)
        for record in self._storable(records):
            if self.put(table, record):
                self._journal(place, record)
        self._quarantine(records)

    def apply_as(self, place: PlaceKey, attempt: int, records: Sequence[Record]) -> None:
        """Apply as the replayer of an attempt: past its fence, not in its journal, nowhere once the attempt has ended.

        To the guard of another attempt this is a write like any other.
        """
        side = self.live_side(place, attempt)
        table = self.table(place)
        others = [other for other in self._sides.get(place, {}).values() if other is not side]
        if any(other.fence_now(self.clock.monotonic()) != "open" for other in others):
            msg = f"{place[0]} is sealed in {self.name} by another attempt"
            raise StaleRoute(msg)
        for record in self._storable(records):
            if side.tombs.get(record.ident, -1) < record.version and self.put(table, record):
                for other in others:
                    other.note(record)
        self._quarantine(records)

    def put(self, table: Table, record: Record) -> bool:
        """Every record lands through here."""
        return table.put(record)

    def execute(self, place: PlaceKey, mutation: Any) -> Executed:
        """Run one mutation as one transaction."""
        table = self.table(place)
        self._refuse_fenced(place)

        def read(key: Key) -> Record | None:
            return table.records.get(key) or self._hard_deleted(place, key)

        done = reference.execute(place[0], mutation, read, self.clock.now_us(), of_routing=table.of_routing)
        for record in done.records:
            landed = self.put(table, record)
            assert landed, "a decision is newer than what it was decided on"
            self._journal(place, record)
        return done

    def _storable(self, records: Sequence[Record]) -> Iterator[Record]:
        return (record for record in records if self.check(record) is None)

    def _quarantine(self, records: Sequence[Record]) -> None:
        rejected = {record.ident: reason for record in records if (reason := self.check(record)) is not None}
        if rejected:
            raise Quarantine(rejected)

    # guards
    def side(self, place: PlaceKey, attempt: int) -> Side:
        """The guard of a place for an attempt, installed or not."""
        return self._sides.setdefault(place, {}).setdefault(attempt, Side())

    def live_side(self, place: PlaceKey, attempt: int) -> Side:
        """The installed guard; StaleRoute when there is none: a missing journal never means clean."""
        side = self.side(place, attempt)
        if not side.installed:
            msg = f"attempt {attempt} of {place[0]} has no journal in {self.name}"
            raise StaleRoute(msg)
        return side

    def install(self, place: PlaceKey, attempt: int, token: Token, *, sealed: bool) -> None:
        """Put a journal on."""
        self.check_token(token)
        self.table(place)
        self.side(place, attempt).install(sealed=sealed)

    def fence(self, place: PlaceKey, attempt: int, token: Token, flip: int, lapse_s: float) -> None:
        """Close a place until the fence lapses. Every write here is one step, so none is running."""
        self.check_token(token)
        self.side(place, attempt).fence(flip, self.clock.monotonic() + lapse_s)

    def seal(self, place: PlaceKey, attempt: int, token: Token, flip: int) -> None:
        """Close a place for good."""
        self.check_token(token)
        self.side(place, attempt).seal(flip, self.clock.monotonic())

    def open(self, place: PlaceKey, attempt: int, flip: int) -> None:
        """Open a place."""
        side = self.side(place, attempt)
        if not side.installed:
            msg = f"attempt {attempt} of {place[0]} has no guard in {self.name}: nothing to open"
            raise MigrationError(msg)
        side.open(flip)

    def remove(self, place: PlaceKey, attempt: int, token: Token, *, keep_fence: bool) -> None:
        """Take a journal off for good."""
        self.check_token(token)
        self.side(place, attempt).remove(keep_fence=keep_fence)

    def journal_records(self, place: PlaceKey, attempt: int) -> Iterator[Record]:
        """Each dirty record as it is now, oldest entry first."""
        table = self.table(place)
        side = self.live_side(place, attempt)
        tombstone = DOMAINS[place[0]].tombstone
        for (kind, key), version in list(side.journal.items()):
            yield table.records.get((kind, key)) or tombstone(kind, key, version)

    def settle(self, place: PlaceKey, attempt: int, seen: Sequence[Record]) -> None:
        """Clear the entries that are at exactly the version of the record applied."""
        journal = self.live_side(place, attempt).journal
        for record in seen:
            if journal.get(record.ident) == record.version:
                del journal[record.ident]

    def repair(self, place: PlaceKey, attempt: int, keys: Sequence[Key], ghosts: Sequence[Record], now_us: int) -> None:
        """Lift what is stored, enter what is not as hard deleted, and mark both dirty."""
        side = self.live_side(place, attempt)
        self._refuse_fenced(place)
        table = self.table(place)
        for record in [table.records[key] for key in keys if key in table.records]:
            lead = KINDS[record.kind].lead if record.deleted else 0
            lifted = record._replace(version=max(record.version + 2, now_us) + lead)
            self.put(table, lifted)
            self._journal(place, lifted)
        for ghost in ghosts:
            if ghost.ident not in table.records:
                side.tombs[ghost.ident] = side.journal[ghost.ident] = ghost.version

    def _refuse_fenced(self, place: PlaceKey) -> None:
        now = self.clock.monotonic()
        if any(side.fence_now(now) != "open" for side in self._sides.get(place, {}).values()):
            raise Fenced

    def _journal(self, place: PlaceKey, record: Record) -> None:
        for side in self._sides.get(place, {}).values():
            side.note(record)
        self.follow(place, Entry(record.kind, record.key, record.version))

    def follow(self, place: PlaceKey, entry: Entry) -> None:
        """Enter a write into every outbox, as triggers do; whoever writes a last-writer place does so beforehand."""
        if self.authority_class == "transactional":
            for following in self.following.get(place, {}).values():
                following.note(entry, self.clock.now_us())

    def _hard_deleted(self, place: PlaceKey, key: Key) -> Record | None:
        versions = [tombs[key] for tombs in self._tombs(place) if key in tombs]
        return DOMAINS[place[0]].tombstone(*key, max(versions)) if versions else None

    def _tombs(self, place: PlaceKey) -> list[dict[Key, int]]:
        """The tombstones of foreign hard deletes, of each guard and each outbox."""
        sides, following = self._sides.get(place, {}), self.following.get(place, {})
        return [side.tombs for side in sides.values()] + [one.tombs for one in following.values()]

    # tokens
    def check_token(self, token: Token) -> None:
        """Refuse a coordinator that another has overtaken."""
        if self.tokens.get(token.domain, 0) > token.value:
            raise LostLease
        self.tokens[token.domain] = token.value

    # programs that do not know the library
    def foreign_write(self, place: PlaceKey, record: Record, *, program: str) -> Record:
        """What a plain INSERT or UPDATE does: fenced, journalled, its version lifted where the writer did not."""
        self._refuse_fenced(place)
        table = self.table(place)
        stored = table.records.get(record.ident) or self._hard_deleted(place, record.ident)
        lifted = record
        if stored is not None and record.version <= stored.version:
            lifted = record._replace(version=max(stored.version + 2, self.clock.now_us()))
        self._seen_foreign(place, program)
        for tombs in self._tombs(place):
            tombs.pop(record.ident, None)
        self.put(table, lifted)
        self._journal(place, lifted)
        return lifted

    def foreign_delete(self, place: PlaceKey, key: Key, *, program: str) -> None:
        """What a plain DELETE does: the row goes, and each journal keeps a tombstone above it."""
        self._refuse_fenced(place)
        removed = self.table(place).remove(key)
        if removed is None:
            return
        self._seen_foreign(place, program)
        lead = KINDS[key[0]].lead
        version = max(removed.version + 2, self.clock.now_us()) + lead
        for side in self._sides.get(place, {}).values():
            if side.installed:
                side.tombs[key] = version
                side.journal[key] = version
        for following in self.following.get(place, {}).values():
            following.tombs[key] = version
        self.follow(place, Entry(*key, version, gone=True))

    def _seen_foreign(self, place: PlaceKey, program: str) -> None:
        for side in self._sides.get(place, {}).values():
            if side.installed:
                side.foreign.add(program)


SERVERS: Final[dict[str, MemoryServer]] = {}
"""The servers that ``memory://NAME`` URLs mean, by name: the one piece of module state here. It stands for the
network that finds a real server; a test that wants none gives its MemoryServer to the backend instead."""


def server_named(name: str, clock: Clock, authority_class: AuthorityClass) -> MemoryServer:
    """The server of a URL, made when it is named for the first time."""
    return SERVERS.setdefault(name, MemoryServer(name, clock, authority_class=authority_class))
