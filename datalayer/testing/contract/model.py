"""The reference: a dictionary and decide(), and how a real answer is compared with it.

A real store takes ``now`` from a clock of its own, so the instant is read back from its answer: it must lie between
before and after the call (within the skew of two clocks), and with it decide() must give the same answer to the bit.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from datalayer.domains import catalogue, conversations, listings, messages, sessions, users
from datalayer.domains.record import FINAL_LEAD
from datalayer.domains.registry import DOMAINS
from datalayer.errors import DatalayerError
from datalayer.stores.base import Executed

if TYPE_CHECKING:
    from collections.abc import Iterable

    from datalayer.domains.record import Key, Record
    from datalayer.testing.contract.fixture import StoreFixture

SKEW_US: Final = 2_000_000
_STAMPED: Final[dict[type, str]] = {
    messages.Edit: "edited_at_us",
    users.UpdateUser: "updated_at_us",
    users.DeleteUser: "updated_at_us",
    conversations.UpdateConversation: "updated_at_us",
    conversations.DeleteConversation: "updated_at_us",
    conversations.AddMember: "joined_at_us",
    sessions.CreateSession: "created_at_us",
}
"""Mutations whose entity says when they were."""
_LIFTED: Final = (
    messages.Delete,
    conversations.RemoveMember,
    conversations.SetRole,
    conversations.MarkRead,
    listings.Show,
    catalogue.Pend,
    catalogue.Attach,
    catalogue.Describe,
    catalogue.Detach,
    catalogue.Hold,
    catalogue.Forget,
    sessions.RevokeSession,
)
"""Mutations whose entity has a version only."""


@dataclass(slots=True)
class Model:
    """What one domain's place should hold."""

    domain: str
    exact: bool = True
    """Whether versions are decide()'s own; a last-writer authority allots them."""
    records: dict[Key, Record] = field(default_factory=dict)

    def put(self, records: Iterable[Record]) -> None:
        """Take over records, newer wins."""
        for record in records:
            stored = self.records.get(record.ident)
            if stored is None or record.version > stored.version:
                self.records[record.ident] = record

    def decide(self, mutation: Any, now_us: int) -> Executed:
        """What the mutation should do now; nothing is stored."""
        definition = DOMAINS[self.domain]
        keys = list(definition.keys_of(mutation))
        stored = self.records.get(keys[0])
        if self.domain == "users" and (stored is not None or isinstance(mutation, users.CreateUser)):
            before = None if stored is None else users.to_user(stored)
            take, release = users.wanted_claims(mutation, before)
            keys += [("claim", key) for key in (*take, *release)]
        if self.domain == "conversations" and conversations.needs_all_members(mutation):
            members = (ident for ident in self.records if ident[0] == "member")
            keys += [ident for ident in members if ident[1][:16] == mutation.id.bytes]
        let_go = catalogue.referred(mutation, stored) if self.domain == "catalogue" else None
        keys += [] if let_go is None else [let_go]
        current = {key: self.records[key] for key in keys if key in self.records}
        entity, records = definition.decide(mutation, current, now_us)
        return Executed(entity, records)

    async def step(self, fixture: StoreFixture, store: Any, mutation: Any) -> None:
        """Run a mutation on the store and compare: the same error, or the same entity and records."""
        before_us = fixture.clock.now_us()
        try:
            actual = await store.execute(mutation, fixture.deadline())
        except DatalayerError as error:
            self._compare_error(error, mutation, before_us)
            return
        now_us = _instant(mutation, actual, before_us)
        after_us = fixture.clock.now_us()
        assert before_us - SKEW_US <= now_us <= after_us + SKEW_US, "the version is not taken from the clock"
        expected = self.decide(mutation, now_us)
        if not self.exact:
            assert _unversioned(actual.records) == _unversioned(expected.records), mutation
            self.put(actual.records)
            return
        assert repr(actual.entity) == repr(expected.entity), mutation
        assert _sorted(actual.records) == _sorted(expected.records), mutation
        self.put(expected.records)

    def _compare_error(self, error: DatalayerError, mutation: Any, now_us: int) -> None:
        wanted: DatalayerError | Executed
        try:
            wanted = self.decide(mutation, now_us)
        except DatalayerError as refusal:
            wanted = refusal
        told = (type(error), getattr(error, "field", None))
        assert told == (type(wanted), getattr(wanted, "field", None)), f"{mutation}: {error!r}, expected {wanted!r}"


def _instant(mutation: Any, actual: Executed, before_us: int) -> int:
    """The clock as the store read it, from its answer."""
    if not actual.records:
        return before_us
    entity = actual.entity
    if type(mutation) in _STAMPED:
        stamp = getattr(entity, _STAMPED[type(mutation)])
        assert stamp is not None, "the entity carries its time"
        return int(stamp)
    if isinstance(mutation, _LIFTED):
        # Where the version was not lifted above a stored one, it is the clock.
        lead = FINAL_LEAD if isinstance(mutation, (messages.Delete, catalogue.Detach, sessions.RevokeSession)) else 0
        return min(int(entity.version) - lead, before_us + SKEW_US)
    if isinstance(mutation, sessions.TouchSession):
        return int(entity.expires_at_us) - mutation.ttl_us
    if isinstance(mutation, sessions.RevokeSessions):
        return int(entity.mark) - sessions.CUT_LEAD_US
    # What has versions of its own is told by what comes with it: a user's claims, a restored item's object.
    beside = [record.version for record in actual.records if record.kind in {"claim", "object"}]
    return min(*beside, before_us + SKEW_US) if beside else before_us


def _unversioned(records: Iterable[Record]) -> list[Record]:
    return [record._replace(version=0) for record in _sorted(records)]


def _sorted(records: Iterable[Record]) -> list[Record]:
    """Records as compared: by key, a tombstone without its fields."""
    plain = (record._replace(fields=()) if record.deleted else record for record in records)
    return sorted(plain, key=lambda record: record.ident)
