"""Verification: fold a scan of each side into bins, drill into unequal bins, judge each candidate by reading again.

Unlike stores share no ranges, so the bins are the slots of the routing key: (count, sum mod 2^128 of a hash of key,
canonical value and version). Both sides are folded, so that target-only ghosts show. Under live traffic a mismatch is
only a candidate: it is reported when the key is not dirty, the authority's version has not changed between two reads
and the mirror still differs; a key that keeps changing is listed as undecided, never as equal.

What it cannot see: a change that both sides share; a record that comes and goes between the two reads of a candidate;
a store that answers fetch() and scan() differently at rest (the contract suite's business).
"""

from __future__ import annotations

import asyncio
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from datalayer.domains.record import DIGEST_MODULUS, digest, useless
from datalayer.domains.registry import DOMAINS
from datalayer.domains.users import stands_for_nothing
from datalayer.ids import SLOTS, slot_of
from datalayer.migrators.backfill import CHECKPOINT_EVERY_S, bins_of, payload_of
from datalayer.migrators.leased import CHUNK_TTL_S, work_through
from datalayer.migrators.together import together
from datalayer.routing.pages import next_limit
from datalayer.routing.shards import base_domain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from datalayer.clock import Clock
    from datalayer.control.base import Chunk, Control
    from datalayer.domains.record import Key, Record
    from datalayer.migrators.options import Failpoints
    from datalayer.stores.base import Journal, Port

WAITS_S: Final = (0.0, 0.05, 0.2, 1.0, 2.0, 4.0)
DRILL_KEYS_MAX: Final = 100_000
REPORT_MAX: Final = 1000
UNDECIDED_MAX: Final = 100
SAMPLE_SLOTS: Final = SLOTS // 16
Bins = dict[int, tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Difference:
    """One key on which the sides differ: missing (in the mirror), ghost (only there), stale (older) or wrong."""

    kind: str
    key: str
    what: str
    authority_version: int | None
    mirror_version: int | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of one pass. ``clean``: no difference and nothing undecided."""

    mode: str
    at_us: int
    seconds: float
    authority_records: int
    mirror_records: int
    candidates: int
    differences: tuple[Difference, ...] = ()
    undecided: tuple[str, ...] = ()
    max_version: int = 0

    @property
    def clean(self) -> bool:
        """Whether the sides are equal as far as this pass can see."""
        return not self.differences and not self.undecided

    @property
    def ready(self) -> bool:
        """Whether a cut-over may follow: what is undecided is judged again right before the hold and inside it."""
        return not self.differences and len(self.undecided) <= UNDECIDED_MAX

    def document(self) -> dict[str, Any]:
        """As plain values."""
        return {**asdict(self), "clean": self.clean, "ready": self.ready}


@dataclass(slots=True)
class _Fold:
    bins: Bins = field(default_factory=dict)
    records: int = 0
    max_version: int = 0


class Verifier:
    """Compares the authority and the mirror of one routing."""

    def __init__(
        self,
        domain: str,
        authority: Port,
        mirror: Port,
        journal: Journal,
        *,
        control: Control,
        clock: Clock,
        run_name: str,
        holder: str,
        failpoints: Failpoints,
        progress: Callable[[int], None],
        mode: str = "full",
    ) -> None:
        self._kinds = {kind.name: kind for kind in DOMAINS[base_domain(domain)].kinds}
        self._authority = authority
        self._mirror = mirror
        self._journal = journal
        self._control = control
        self._clock = clock
        self._run = run_name
        self._holder = holder
        self._failpoints = failpoints
        self._progress = progress
        self._mode = mode
        self._seen = 0

    async def run(self, workers: int) -> Verdict:
        """One pass; it goes on where an interrupted one with the same run name stopped."""
        began = self._clock.monotonic()
        authority, mirror = await together(
            self._fold(self._authority, "authority", workers), self._fold(self._mirror, "mirror", workers)
        )
        unequal = {
            number
            for number in authority.bins.keys() | mirror.bins.keys()
            if authority.bins.get(number) != mirror.bins.get(number) and self._covers(number)
        }
        candidates = await self._drill(unequal, authority.bins)
        differences, undecided = await self.judge(sorted(candidates))
        verdict = Verdict(
            self._mode,
            self._clock.now_us(),
            round(self._clock.monotonic() - began, 3),
            authority.records,
            mirror.records,
            len(candidates),
            tuple(differences[:REPORT_MAX]),
            tuple(f"{kind}:{key.hex()}" for kind, key in undecided[:REPORT_MAX]),
            authority.max_version,
        )
        for side in ("authority", "mirror"):
            await self._control.drop_run(f"{self._run}/{side}")
        return verdict

    def _covers(self, number: int) -> bool:
        return self._mode == "full" or number < SAMPLE_SLOTS

    # --- folding ----------------------------------------------------------------------------------------------------

    async def _fold(self, port: Port, side: str, workers: int) -> _Fold:
        run = f"{self._run}/{side}"
        if not await self._control.chunks(run):
            await self._control.plan_chunks(run, await port.plan_scan(workers * 4))
        chunks = await work_through(
            self._control,
            self._clock,
            run,
            holder=f"{self._holder}/{side}",
            workers=workers,
            work=lambda chunk: self._fold_chunk(port, chunk),
        )
        folded = _Fold()
        for chunk in chunks:
            payload = bins_of(chunk.payload)
            folded.max_version = max(folded.max_version, payload.pop(-1, (0, 0))[1])
            for number, (count, total) in payload.items():
                have = folded.bins.get(number, (0, 0))
                folded.bins[number] = (have[0] + count, (have[1] + total) % DIGEST_MODULUS)
            folded.records += chunk.rows
        return folded

    async def _fold_chunk(self, port: Port, chunk: Chunk) -> None:
        bins = bins_of(chunk.payload)
        limit, saved_at = 500, self._clock.monotonic()
        while True:
            page = await port.scan(chunk.range, chunk.after, limit)
            limit = next_limit(limit, page.records)
            live = self._fold_page(bins, page.records)
            chunk = replace(chunk, after=page.after, rows=chunk.rows + live, done=page.done)
            self._seen += len(page.records)
            self._progress(self._seen)
            await self._failpoints.reach("verify.page")
            now = self._clock.monotonic()
            if page.done or now - saved_at >= CHECKPOINT_EVERY_S:
                await self._control.checkpoint(replace(chunk, payload=payload_of(bins)), CHUNK_TTL_S)
                saved_at = now
            if page.done:
                return
            await asyncio.sleep(0)

    def _fold_page(self, bins: Bins, records: Iterable[Record]) -> int:
        """Fold what is there; tombstones count as absence (a foreign hard delete leaves none behind)."""
        live, newest = 0, bins.get(-1, (0, 0))[1]
        for record in records:
            if self._absent(record):
                continue
            live += 1
            newest = max(newest, record.version)
            number = slot_of(record.key[:16])
            count, total = bins.get(number, (0, 0))
            bins[number] = (count + 1, (total + digest(self._kinds[record.kind], record)) % DIGEST_MODULUS)
        bins[-1] = (0, newest)
        return live

    # --- drilling ---------------------------------------------------------------------------------------------------

    async def _drill(self, unequal: set[int], bins: Bins) -> set[Key]:
        """The keys that differ in unequal bins, found by a second scan, in groups of bounded memory."""
        candidates: set[Key] = set()
        group: set[int] = set()
        size = 0
        for number in sorted(unequal):
            group.add(number)
            size += bins.get(number, (0, 0))[0] + 1
            if size >= DRILL_KEYS_MAX:
                candidates |= await self._drill_group(group)
                group, size = set(), 0
        if group:
            candidates |= await self._drill_group(group)
        return candidates

    async def _drill_group(self, group: set[int]) -> set[Key]:
        authority, mirror = await together(self._digests(self._authority, group), self._digests(self._mirror, group))
        return {key for key in authority.keys() | mirror.keys() if authority.get(key) != mirror.get(key)}

    async def _digests(self, port: Port, group: set[int]) -> dict[Key, int]:
        found: dict[Key, int] = {}
        for range_ in await port.plan_scan(1):
            after, done, limit = None, False, 500
            while not done:
                page = await port.scan(range_, after, limit)
                limit = next_limit(limit, page.records)
                for record in page.records:
                    if not self._absent(record) and slot_of(record.key[:16]) in group:
                        found[record.ident] = digest(self._kinds[record.kind], record)
                after, done = page.after, page.done
        return found

    async def unequal_now(self, keys: Sequence[Key]) -> list[Key]:
        """Those of the keys on which the sides differ now; only right while no write can happen."""
        authority, mirror = await together(self._authority.fetch(keys), self._mirror.fetch(keys))
        return [key for key in keys if not self._equal(authority.get(key), mirror.get(key))]

    # --- judging ----------------------------------------------------------------------------------------------------

    async def judge(
        self, keys: Sequence[Key], *, waits_s: Sequence[float] = WAITS_S
    ) -> tuple[list[Difference], list[Key]]:
        """(differences, undecided) among candidate keys, reading both sides again until each is decided."""
        open_keys, seen = list(keys), dict.fromkeys(keys)
        versions: dict[Key, int | None] = dict(seen)
        differences: dict[Key, Difference] = {}
        for attempt, wait_s in enumerate(waits_s):
            if not open_keys:
                break
            await asyncio.sleep(wait_s)
            still: list[Key] = []
            for at in range(0, len(open_keys), 500):
                still += await self._judge_batch(open_keys[at : at + 500], versions, differences, attempt)
            open_keys = still
        return list(differences.values()), [key for key in open_keys if key not in differences]

    async def _judge_batch(
        self, keys: list[Key], versions: dict[Key, int | None], differences: dict[Key, Difference], attempt: int
    ) -> list[Key]:
        authority = await self._authority.fetch(keys)
        mirror = await self._mirror.fetch(keys)
        still: list[Key] = []
        for key in keys:
            a, m = authority.get(key), mirror.get(key)
            if self._equal(a, m):
                continue
            version = None if a is None else a.version
            settled = attempt > 0 and versions[key] == version
            versions[key] = version
            if settled and not await self._journal.dirty([key[1][:16]], [key]):
                # Both once more, now that the key is known to be clean: the replayer may have come between the
                # first read of the mirror and the look into the journal.
                again, mirrored = (
                    (await self._authority.fetch([key])).get(key),
                    (await self._mirror.fetch([key])).get(key),
                )
                if (None if again is None else again.version) == version and not self._equal(again, mirrored):
                    differences[key] = _difference(key, again, mirrored)
                    continue
            still.append(key)
        return still

    def _equal(self, a: Record | None, m: Record | None) -> bool:
        if a is None or self._absent(a):
            return m is None or self._absent(m)
        if m is None or self._absent(m):
            return False
        return digest(self._kinds[a.kind], a) == digest(self._kinds[m.kind], m)

    def _absent(self, record: Record) -> bool:
        """What counts as absence. A store drops what has expired only long after that, so that what is compared here
        has been dropped by neither side.
        """
        return stands_for_nothing(record) or useless(self._kinds[record.kind], record, self._clock.now_us())


def _difference(key: Key, a: Record | None, m: Record | None) -> Difference:
    if a is None or a.deleted:
        what = "ghost"
    elif m is None or m.deleted:
        what = "missing"
    else:
        what = "stale" if m.version < a.version else "wrong"
    return Difference(key[0], key[1].hex(), what, None if a is None else a.version, None if m is None else m.version)
