"""The control store's port: the truth about routes, the fleet, migrations, and the intents of last-writer authorities.

Correctness never rests on a notification: ``news`` is a counter that rises with every published routing; a process
that missed one reads the routings again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from datalayer.clock import Deadline
    from datalayer.domains.record import Key, Record
    from datalayer.routing.route import Place, Routing
    from datalayer.stores.base import GuardState, Journal, Token

LEASE_S: float = 8.0
LEASE_RENEW_S: float = 2.0
LEASE_DRIFT_S: float = 1.0


def coordinator_lease(domain: str) -> str:
    """The name of the lease whose token every step of a coordinator of this domain carries."""
    return f"migrate:{domain}"


@dataclass(frozen=True, slots=True)
class ProcessInfo:
    """One open DataLayer. ``lease_left_s``: seconds until its lease ends by the control store's clock (may be < 0)."""

    id: str
    host: str
    pid: int
    boot_id: str
    name: str
    seen_ago_s: float = 0.0
    lease_left_s: float = 0.0
    epochs: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Migration:
    """One migration of a domain; ``state`` is what the command line shows, the phase is in the routing."""

    id: str
    domain: str
    attempt: int
    source: Place
    target: Place
    phase: str
    milestones: frozenset[str]
    """Of: backfilled, verified, cancelled, completed, purged."""
    options: Mapping[str, Any]
    flips: int
    started_us: int
    updated_us: int
    paused: bool = False

    @property
    def finished(self) -> bool:
        """Whether it ended (completed or cancelled)."""
        return bool(self.milestones & {"completed", "cancelled"})


StepState = Literal["planned", "doing", "done", "failed"]


@dataclass(frozen=True, slots=True)
class Step:
    """One recorded action of a coordinator."""

    seq: int
    action: str
    state: StepState
    detail: str
    token: int
    at_us: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """One leased range of a backfill or a verification pass, with its checkpoint."""

    run: str
    number: int
    range: str
    after: str | None
    rows: int
    payload: str
    """Opaque to the control store: digests folded so far, as JSON."""
    done: bool
    lease_token: int = 0


@dataclass(frozen=True, slots=True)
class QuarantineRow:
    """A record that the target cannot take."""

    kind: str
    key: bytes
    version: int
    reason: str
    at_us: int


@dataclass(frozen=True, slots=True)
class AuditRow:
    """Who did what, when."""

    seq: int
    at_us: int
    actor: str
    action: str
    detail: str


class AdmitState(StrEnum):
    """What the gate answers to a write of a last-writer authority."""

    ADMITTED = "admitted"
    FENCED = "fenced"
    STALE = "stale"
    """The attempt or phase is not the one the writer believed."""
    DELETED = "deleted"
    """A delete of this key is pending: nothing but a delete may follow."""
    EXISTS = "exists"
    """An append of a key with a pending intent: ``record`` holds what is pending."""


class Admitted(NamedTuple):
    """The answer of the gate; ``record`` is the admitted record with its allotted version, or what is pending."""

    state: AdmitState
    record: Record | None


class IntentLog(Protocol):
    """Gate and journal of one side of one attempt, for an authority that has no transactions of its own."""

    journal: Journal

    async def admit(self, record: Record, *, lead: int, create: bool, deadline: Deadline | None) -> Admitted:
        """Take the gate's lock shared, then as a second statement check it, allot the version, store the intent.

        Allotted = max(record.version, pending.version + 2 + lead (+ 2 alone over a pending delete, whose version has
        its lead already), floor + 2 + lead), where record.version is already
        above what was seen, the clock (with ``lead``, FINAL_LEAD for a delete) and the id's time. ``create``: an
        append, which keeps its version (the id's own time) and answers EXISTS where an intent is pending.
        The full payload is in the intent. On return of ADMITTED the intent is durable.
        """
        ...

    async def install(self, token: Token, *, sealed: bool) -> None:
        """Make the gate row, open or sealed. Idempotent: an existing row is left as it is."""
        ...

    async def fence(self, token: Token, flip: int, lapse_s: float, lock_timeout_s: float) -> None:
        """Close the gate, its lock taken alone, until it lapses; no admission is running on return."""
        ...

    async def seal(self, token: Token, flip: int) -> None:
        """Close the gate for good; MigrationError when the lapsing fence of this flip is over already."""
        ...

    async def open(self, flip: int) -> None:
        """Open the gate. Idempotent."""
        ...

    async def state(self) -> GuardState:
        """What is in force now."""
        ...

    async def set_floor(self, version: int) -> None:
        """Versions allotted from now on are above this one (never lowers it)."""
        ...

    async def remove(self, token: Token, *, keep_fence: bool) -> None:
        """Forget the intents; the gate row goes too unless ``keep_fence`` (then it stays, sealed)."""
        ...


class Control(Protocol):
    """The control store."""

    async def open(self, *, create: bool) -> None:
        """Connect and check the schema version (SchemaAhead when it is newer, SchemaBehind unless created)."""
        ...

    async def close(self) -> None:
        """Idempotent."""
        ...

    async def deployment(self) -> str:
        """The deployment's id, made with the schema."""
        ...

    # routes
    async def ensure_routes(self, first: Mapping[str, Place]) -> None:
        """Publish the first placement of each domain that has none yet."""
        ...

    async def routings(self) -> tuple[int, dict[str, Routing]]:
        """(news, routing by domain), read together."""
        ...

    async def wait_news(self, seen: int, timeout_s: float, *, poll_s: float) -> int:
        """Return the news counter as soon as it differs from ``seen``, or after the timeout."""
        ...

    async def publish(self, token: Token, routing: Routing, *, actor: str) -> Routing:
        """Make this the routing of its domain at the next epoch (the value's own epoch is ignored); audited.

        Also sets the migration's phase. LostLease when the token is not the newest.
        """
        ...

    # fleet
    async def register(self, info: ProcessInfo, epochs: Mapping[str, int]) -> None:
        """Enter a process with the epochs it serves."""
        ...

    async def renew(self, process_id: str, epochs: Mapping[str, int], lease_s: float = LEASE_S) -> int:
        """Prolong the lease, acknowledge epochs; the news counter. Closed when the process was deregistered."""
        ...

    async def leave(self, process_id: str) -> None:
        """Idempotent."""
        ...

    async def processes(self) -> list[ProcessInfo]:
        """Everybody registered."""
        ...

    async def behind(self, domain: str, epoch: int) -> list[ProcessInfo]:
        """Registered processes that have not acknowledged this epoch (or a later one) of the domain."""
        ...

    async def deregister(self, patterns: Sequence[str], *, actor: str) -> list[ProcessInfo]:
        """Remove processes whose id, host, name or host:pid matches a glob; audited. Returns those removed."""
        ...

    # leases with fencing tokens
    async def take(self, name: str, holder: str, ttl_s: float) -> int | None:
        """A new, higher token, or None while somebody else's lease lives. Taking one's own again prolongs it."""
        ...

    async def keep(self, name: str, token: int, ttl_s: float) -> None:
        """Prolong; LostLease when it went to somebody else."""
        ...

    async def release(self, name: str, token: int) -> None:
        """Give back; no error when it is lost already."""
        ...

    async def holder(self, name: str) -> tuple[str, float] | None:
        """(holder, seconds left) of a live lease."""
        ...

    # migrations
    async def start_migration(
        self, token: Token, migration: Migration, *, actor: str, within: Token | None = None
    ) -> Migration:
        """Enter a new migration; PreconditionFailed when an unfinished one of the domain exists.

        ``within``: of a slot group, the token of its domain's lease; LostLease when somebody else has that by now.

        Nor does a domain begin to move while one of its slot groups (``users/7/0-63``) does, nor a group while its
        domain does; two groups may.
        """
        ...

    async def migrations(self, domain: str | None = None) -> list[Migration]:
        """Newest first."""
        ...

    async def update_migration(self, token: Token, migration_id: str, **changes: Any) -> Migration:
        """Set milestones, flips or paused, merge options (None takes one away); LostLease when the token is old."""
        ...

    async def set_options(self, migration_id: str, options: Mapping[str, Any], *, actor: str) -> None:
        """Merge options from an operator (throttle), without the lease; audited. None takes an option away; ``paused``
        sets the migration's field.
        """
        ...

    async def next_attempt(self, domain: str) -> int:
        """A number never used before for this domain."""
        ...

    async def record_step(self, token: Token, action: str, state: StepState, detail: str = "") -> None:
        """Enter one action of the plan as planned, doing, done or failed; LostLease when the token is old."""
        ...

    async def steps(self, migration_id: str, limit: int = 200) -> list[Step]:
        """Newest first."""
        ...

    # chunks
    async def plan_chunks(self, run: str, ranges: Sequence[str]) -> None:
        """Enter a run's ranges once; a second call changes nothing."""
        ...

    async def chunks(self, run: str) -> list[Chunk]:
        """All chunks of a run, in order."""
        ...

    async def take_chunk(self, run: str, holder: str, ttl_s: float) -> Chunk | None:
        """A chunk that is not done and not leased, now leased to the holder; None when there is none."""
        ...

    async def checkpoint(self, chunk: Chunk, ttl_s: float) -> None:
        """Store after, rows, payload, done; LostLease when the chunk's lease token is not the newest."""
        ...

    async def drop_run(self, run: str) -> None:
        """Forget the chunks of a run. Idempotent."""
        ...

    # quarantine
    async def quarantine(self, migration_id: str, rows: Sequence[QuarantineRow]) -> None:
        """Upsert by (kind, key)."""
        ...

    async def quarantined(self, migration_id: str, limit: int = 1000) -> list[QuarantineRow]:
        """Oldest first."""
        ...

    async def release_quarantine(self, migration_id: str, keys: Sequence[Key]) -> None:
        """Remove; absent ones are ignored."""
        ...

    # verification results and progress: small JSON documents by (migration, name)
    async def put_document(self, migration_id: str, name: str, value: Mapping[str, Any]) -> None:
        """Store or replace a document."""
        ...

    async def ensure_document(self, migration_id: str, name: str, value: Mapping[str, Any]) -> dict[str, Any]:
        """Store a document unless there is one; what is there then."""
        ...

    async def document(self, migration_id: str, name: str) -> dict[str, Any] | None:
        """The document, or None."""
        ...

    # intents
    def intents(self, domain: str, attempt: int, side: Literal["source", "target"]) -> IntentLog:
        """Gate and journal of a side whose store is a last-writer one."""
        ...

    # audit
    async def audit(self, actor: str, action: str, detail: str) -> None:
        """Append to the audit log."""
        ...

    async def audit_log(self, limit: int = 100) -> list[AuditRow]:
        """Newest first."""
        ...
