"""The indexer: brings every live search index in step with messages and users.

Outbox -> records, read where they lie now -> documents -> the index -> settle by the version of the record that the
index was given. Every step may be done twice, late and in any order, because an index takes what is newer and nothing
else. One process of the fleet at a time does it for each index, under a lease: for economy, not for correctness.

An entry may be ahead of what can be read: a store without transactions is told before it is written, and a process may
not know yet that the data has moved. It stays until a record of that version is read, or until it has waited for longer
than any hint; only the entry itself says that a row is gone for good, and no record that lives.

Errors are counted and what failed is left for the next round (the one place of this component that swallows them).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from datalayer.domains.registry import DOMAINS
from datalayer.domains.search import document_of
from datalayer.domains.users import home_region
from datalayer.errors import Closed, DatalayerError, LostLease, Quarantine, StaleRoute, Unavailable
from datalayer.routing.indexes import SEARCH
from datalayer.stores.base import Entry

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from datalayer.control.base import Control
    from datalayer.domains.record import Key, Record
    from datalayer.routing.indexes import Leaf
    from datalayer.routing.places import Places
    from datalayer.routing.route import Place
    from datalayer.routing.router import Jitter
    from datalayer.stores.base import Outbox

log = logging.getLogger("datalayer.indexer")
LEASE_TTL_S: Final = 3.0
KEEP_S: Final = 0.8
BATCH: Final = 500
PAUSE_S: Final = 0.05
"""Between two looks at a place that was written to: what comes meanwhile is done together."""
PAUSE_MAX_S: Final = 0.4
"""Between two looks at a place that nobody writes to."""
FAILED_S: Final = 0.3
LOOK_S: Final = 0.25
SWEEP_S: Final = 30.0
LAG_MAX: Final = 10_001
LAG_KEPT_S: Final = 1.0
AGAIN: Final = 100
"""So many of those that are stuck are looked at beside new ones."""
YOUNG_US: Final = 60_000_000
REFUSED_MAX: Final = 1_000
WATCHED_S: Final = 60.0
NEVER_CAME_US: Final = 4 * 3600 * 1_000_000
"""An entry that is older than this and still ahead of its record is of a write that never came: longer than any hint of
Cassandra is kept (max_hint_window, 3 h by default)."""


def indexer_lease(index: Place) -> str:
    """The name of the lease of whoever keeps this index in step."""
    return f"indexer/{index.attempt}"


@dataclass(frozen=True, slots=True)
class IndexLag:
    """How far an index is behind: so many keys (each place's counted to 10,001), the oldest for so many seconds."""

    behind: int
    oldest_s: float


class Stuck(NamedTuple):
    """An entry that could not be brought: its version, and when this process met it."""

    version: int
    met: float


def _new(entry: Entry, stuck: Mapping[Key, Stuck]) -> bool:
    """Whether an entry was not looked at yet."""
    return entry.ident not in stuck or stuck[entry.ident].version != entry.version


class IndexWriter:
    """One index, and all that it follows."""

    def __init__(self, places: Places, index: Place) -> None:
        self.index = index
        self._places = places
        self._stuck: dict[Leaf, dict[Key, Stuck]] = {}
        """Versions that the index cannot take, or that cannot be read yet, those that were looked at longest ago first: they
        keep no others from being brought."""
        self.refused: dict[Key, tuple[int, str]] = {}
        """Versions of documents that the index could not take, and why: at most REFUSED_MAX."""

    async def bring(self, leaf: Leaf, limit: int = BATCH) -> int:
        """One round over one place; how many entries were met for the first time, or settled.

        Raises what a store raises; repeating is harmless.
        """
        await self._places.ensure_open(leaf.place)
        outbox = self._places.indexes.outbox(leaf, self.index)
        stuck = self._stuck.setdefault(leaf, {})
        asked = limit + len(stuck)
        found = {entry.ident: entry for entry in await outbox.pending(asked)}
        if len(found) < asked:
            for key in [key for key in stuck if key not in found]:
                del stuck[key]
        fresh = [entry for entry in found.values() if _new(entry, stuck)][:limit]
        entries = fresh + self._again(stuck, found, limit if not fresh else AGAIN)
        if not entries:
            return 0
        done = await self._bring(leaf, entries)
        await outbox.settle(done)
        for entry in entries:
            known = stuck.pop(entry.ident, None)  # and to the end: the others' turn comes first
            same = known is not None and known.version == entry.version
            stuck[entry.ident] = known if known and same else Stuck(entry.version, self._places.clock.monotonic())
        for entry in done:
            if entry.version >= found[entry.ident].version:
                stuck.pop(entry.ident, None)
        return len({entry.ident for entry in (*fresh, *done)})

    def _again(self, stuck: Mapping[Key, Stuck], found: Mapping[Key, Entry], number: int) -> list[Entry]:
        """Some of those that are stuck: first the young ones, whose writes are under way, then the others in turn."""
        waiting = [found[key] for key in stuck if key in found and not _new(found[key], stuck)]
        young = self._places.clock.now_us() - YOUNG_US
        return sorted(waiting, key=lambda entry: entry.since < young)[:number]

    async def _bring(self, leaf: Leaf, entries: Sequence[Entry]) -> list[Entry]:
        """What of the entries the index holds now, or will never hold."""
        done, ahead = await self._bring_read(leaf, entries)
        if not ahead:
            return done
        left = await self._left_behind(leaf, ahead) if leaf.domain == "users" else []
        late = self._never_came(leaf, ahead)
        if not late:
            return done + left
        # By now its write has come where the domain lies, if it ever came: read there again, by the newest routing.
        await self._places.indexes.fresh()
        more, never = await self._bring_read(leaf, late)
        return done + left + more + never

    def _never_came(self, leaf: Leaf, ahead: Sequence[Entry]) -> list[Entry]:
        """Those that wait for longer than any hint, and for a while before this process's eyes: a clock may be wrong."""
        clock, stuck = self._places.clock, self._stuck.get(leaf, {})
        old, watched = clock.now_us() - NEVER_CAME_US, clock.monotonic() - WATCHED_S
        known = [entry for entry in ahead if not _new(entry, stuck) and stuck[entry.ident].met <= watched]
        return [entry for entry in known if 0 < entry.since < old]

    async def _bring_read(self, leaf: Leaf, entries: Sequence[Entry]) -> tuple[list[Entry], list[Entry]]:
        """(what the index was given, those entries that are ahead of what can be read)."""
        authority = self._places.routing_of(leaf.domain).authority
        await self._places.ensure_open(authority)
        records = await self._places.store(leaf.domain, authority).fetch([entry.ident for entry in entries])
        documents: list[Record] = []
        done: list[Entry] = []
        ahead: list[Entry] = []
        for entry in entries:
            record = records.get(entry.ident)
            if entry.gone and (record is None or (record.deleted and record.version < entry.version)):
                record = DOMAINS[leaf.domain].tombstone(entry.kind, entry.key, entry.version)
            if record is None:
                ahead.append(entry)
                continue
            document = document_of(record)
            assert document is not None, "an outbox holds kinds that have documents"
            documents.append(document)
            done.append(Entry(entry.kind, entry.key, record.version))
            if record.version < entry.version:
                ahead.append(entry)
        refused = await self._apply(documents)
        given = [entry for entry, document in zip(done, documents, strict=True) if document.ident not in refused]
        for document in documents:
            self.refused.pop(document.ident, None)
            if document.ident in refused and len(self.refused) < REFUSED_MAX:
                self.refused[document.ident] = (document.version, refused[document.ident])
        return given, ahead

    async def _apply(self, documents: list[Record]) -> Mapping[Key, str]:
        if documents:
            index = self._places.store(SEARCH, self.index)
            try:
                await index.apply(documents)
            except Quarantine as error:
                return error.rejected
        return {}

    async def _left_behind(self, leaf: Leaf, entries: Sequence[Entry]) -> list[Entry]:
        """Entries of rows that only say in which region their user lies: what they point to was brought."""
        rows = await self._places.store(*leaf).fetch([entry.ident for entry in entries])
        pointers = [row for row in rows.values() if row.deleted and home_region(row) is not None]
        return [Entry(row.kind, row.key, row.version) for row in pointers]

    async def lag(self) -> IndexLag:
        """How far it is behind now, over every place. Raises what a store raises."""
        behind, oldest = 0, None
        for leaf in self._places.indexes.leaves():
            await self._places.ensure_open(leaf.place)
            number, since = await self._places.indexes.outbox(leaf, self.index).lag(LAG_MAX)
            behind += number
            if since is not None:
                oldest = since if oldest is None else min(oldest, since)
        waited = 0.0 if oldest is None else max(0.0, (self._places.clock.now_us() - oldest) / 1e6)
        return IndexLag(behind, waited)

    async def outboxes(self) -> list[tuple[Leaf, Outbox]]:
        """Its outbox at every place."""
        indexes = self._places.indexes
        return [(leaf, indexes.outbox(leaf, self.index)) for leaf in indexes.leaves()]


class Indexer:
    """Keeps the indexes in step for as long as one process runs."""

    def __init__(self, places: Places, process_id: str, jitter: Jitter) -> None:
        self._places = places
        self._control: Control = places.control
        self._process_id = process_id
        self._jitter = jitter
        self._stopped = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._keeping: dict[Place, asyncio.Task[None]] = {}
        self._asked: tuple[float, asyncio.Task[IndexLag]] | None = None
        """The last look at the lag, and when it began: one at a time, however many ask, and however long it takes."""
        self.errors = 0

    def start(self) -> None:
        """Follow from now on, until ``stop``."""
        self._task = asyncio.create_task(self._run(), name="datalayer-indexer")

    async def stop(self) -> None:
        """Follow no more; another process takes over. Idempotent."""
        self._stopped.set()
        asked = None if self._asked is None else self._asked[1]
        tasks = [task for task in (self._task, asked, *self._keeping.values()) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._task, self._asked, self._keeping = None, None, {}

    async def lag(self) -> IndexLag | None:
        """How far the index that is asked now is behind; None where there is none."""
        known = self._places.indexes.known()
        if not known:
            return None
        now = self._places.clock.monotonic()
        if self._asked is None or (self._asked[1].done() and now - self._asked[0] >= LAG_KEPT_S):
            looking = IndexWriter(self._places, known[0]).lag()
            self._asked = (now, asyncio.create_task(looking, name="datalayer-indexer-lag"))
        return await asyncio.shield(self._asked[1])

    async def _run(self) -> None:
        swept_at = self._places.clock.monotonic()
        while not self._stopped.is_set():
            live = self._places.indexes.known()
            for index in live:
                task = self._keeping.get(index)
                if task is None or task.done():
                    keeping = keep_in_step(self, index)
                    self._keeping[index] = asyncio.create_task(keeping, name=f"datalayer-indexer-{index.attempt}")
            for index in [one for one in self._keeping if one not in live]:
                self._keeping.pop(index).cancel()
            if live and self._places.clock.monotonic() - swept_at >= SWEEP_S:
                swept_at = self._places.clock.monotonic()
                await self._try(sweep(self._places, live))
            await self._pause(LOOK_S)

    async def keep(self, index: Place) -> None:
        """One turn: wait for the lease, then follow while it lasts."""
        name = indexer_lease(index)
        value = None
        with contextlib.suppress(DatalayerError):
            value = await self._control.take(name, self._process_id, LEASE_TTL_S)
        if value is None:
            await self._pause(KEEP_S * (0.75 + 0.5 * self._jitter()))
            return
        writer = IndexWriter(self._places, index)
        following: dict[Leaf, asyncio.Task[None]] = {}
        try:
            while not self._stopped.is_set():
                leaves = self._places.indexes.leaves()
                for leaf in leaves:
                    if leaf not in following or following[leaf].done():
                        following[leaf] = asyncio.create_task(
                            self._follow(writer, leaf), name="datalayer-indexer-place"
                        )
                for leaf in [one for one in following if one not in leaves]:
                    following.pop(leaf).cancel()
                await self._pause(KEEP_S)
                try:
                    await self._control.keep(name, value, LEASE_TTL_S)
                except LostLease:
                    return
                except DatalayerError as error:
                    self.failed(error)  # two at work are harmless, and nobody at work is not
        finally:
            for task in following.values():
                task.cancel()
            await asyncio.gather(*following.values(), return_exceptions=True)
            with contextlib.suppress(DatalayerError):
                await self._control.release(name, value)

    async def _follow(self, writer: IndexWriter, leaf: Leaf) -> None:
        pause_s = PAUSE_S
        while not self._stopped.is_set():
            try:
                done = await writer.bring(leaf)
            except StaleRoute:
                pause_s = PAUSE_MAX_S  # the place or its outbox has gone, or is not there yet: the routing will tell
            except DatalayerError as error:
                self.failed(error)
                pause_s = FAILED_S
            else:
                pause_s = PAUSE_S if done else min(2 * pause_s, PAUSE_MAX_S)
                if done >= BATCH:
                    continue
            await self._pause(pause_s)

    async def _try(self, step: Any) -> None:
        try:
            await step
        except (Closed, LostLease):
            return
        except DatalayerError as error:
            self.failed(error)

    def failed(self, error: DatalayerError) -> None:
        """Take note of what went wrong."""
        self.errors += 1
        log.debug("an index is behind: %s", error.message)

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopped.wait()


async def keep_in_step(indexer: Indexer, index: Place) -> None:
    """Turn after turn, until it is cancelled."""
    while True:
        await indexer.keep(index)


async def sweep(places: Places, known: Sequence[Place]) -> int:
    """Take off the outboxes of indexes that are given up: a coordinator that was overtaken may have left some."""
    standing: list[tuple[Any, int]] = []
    for leaf in places.indexes.leaves():
        with contextlib.suppress(Unavailable):
            await places.ensure_open(leaf.place)
            store = places.store(*leaf)
            standing += [(store, number) for number in await store.outboxes()]
    dead = [one for one in standing if one[1] not in {index.attempt for index in known}]
    if dead:
        # Asked after they were seen: whoever puts one on has entered its migration before.
        live = {index.attempt for index in await places.indexes.fresh()}
        dead = [(store, number) for store, number in dead if number not in live]
    for store, number in dead:
        await store.outbox(number).remove()
    return len(dead)
