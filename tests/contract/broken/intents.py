"""Broken gates and intents."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from datalayer.control.base import AdmitState, Admitted
from datalayer.control.memory import MemoryControlServer
from datalayer.control.memory_log import MemoryLog
from datalayer.domains.record import Record
from datalayer.testing.contract import IntentLogSuite
from tests.contract.broken.breakage import Change, Registry, replace

INTENTS = Registry()
breaks = INTENTS.breaks
LATE_S = 0.1


class BrokenControls:
    """What a breakage of a control store may change: the server, each client, each log."""

    def __init__(self, server: MemoryControlServer) -> None:
        self.server = server
        self._changes: list[Change] = []

    def each_client(self, change: Change) -> None:
        """Change every client."""
        self._changes.append(change)

    def each_log(self, change: Change) -> None:
        """Change every gate and its intents, once."""
        changed: set[str] = set()

        def make(log: Callable[[str], MemoryLog]) -> Callable[[str], MemoryLog]:
            def found(name: str) -> MemoryLog:
                made = log(name)
                if name not in changed:
                    changed.add(name)
                    change(made)
                return made

            return found

        replace(self.server, "log", make)

    def opened(self, client: Any) -> Any:
        """The client as broken."""
        for change in self._changes:
            change(client)
        return client


def on_admit(broken: BrokenControls, make: Any) -> None:
    """Change ``admit`` of every log; ``make`` is given the log and the method."""
    broken.each_log(lambda log: replace(log, "admit", lambda admit: make(log, admit)))


def allots(broken: BrokenControls, version_of: Callable[[MemoryLog, Record, Record], int]) -> None:
    """Allot versions otherwise; given the log, the record asked for and the admitted one."""

    def make(log: MemoryLog, admit: Any) -> Any:
        def otherwise(record: Record, lead: int, now: float, *, create: bool) -> Admitted:
            answer: Admitted = admit(record, lead, now, create=create)
            if answer.state is not AdmitState.ADMITTED or answer.record is None or create:
                return answer
            changed = answer.record._replace(version=version_of(log, record, answer.record))
            log.intents[changed.ident] = changed
            return Admitted(answer.state, changed)

        return otherwise

    on_admit(broken, make)


@breaks(IntentLogSuite, "test_an_admitted_record_is_in_the_journal_with_every_value")
def intents_carry_no_payload(broken: BrokenControls) -> None:
    def make(log: MemoryLog, admit: Any) -> Any:
        def bare(record: Record, lead: int, now: float, *, create: bool) -> Admitted:
            answer: Admitted = admit(record, lead, now, create=create)
            if answer.record is not None:
                log.intents[record.ident] = answer.record._replace(fields=(None,) * len(record.fields))
            return answer

        return bare

    on_admit(broken, make)


@breaks(IntentLogSuite, "test_nothing_is_admitted_without_a_gate")
def a_missing_gate_is_open(broken: BrokenControls) -> None:
    def make(log: MemoryLog, admit: Any) -> Any:
        def lenient(record: Record, lead: int, now: float, *, create: bool) -> Admitted:
            answer: Admitted = admit(record, lead, now, create=create)
            return answer if log.installed else Admitted(AdmitState.ADMITTED, record)

        return lenient

    on_admit(broken, make)


@breaks(
    IntentLogSuite,
    "test_version_is_above_pending_and_floor_by_the_lead",
    "test_concurrent_admissions_of_a_key_take_different_versions",
)
def version_is_the_writers_own(broken: BrokenControls) -> None:
    allots(broken, lambda _log, record, _admitted: record.version)


@breaks(IntentLogSuite, "test_version_is_above_pending_and_floor_by_the_lead")
def floor_may_be_lowered(broken: BrokenControls) -> None:
    def change(log: MemoryLog) -> None:
        def lower(version: int) -> None:
            log._floor = version

        replace(log, "set_floor", lambda _: lower)

    broken.each_log(change)


@breaks(IntentLogSuite, "test_version_is_above_pending_and_floor_by_the_lead")
def version_is_a_counter(broken: BrokenControls) -> None:
    allots(broken, lambda log, _record, _admitted: len(log.intents) + 1)


@breaks(
    IntentLogSuite,
    "test_an_append_keeps_its_version_and_meets_a_pending_one",
    "test_concurrent_appends_of_a_key_are_admitted_once",
)
def appends_are_edits(broken: BrokenControls) -> None:
    def make(_log: MemoryLog, admit: Any) -> Any:
        return lambda record, lead, now, *, create: admit(record, lead, now, create=create and False)

    on_admit(broken, make)


@breaks(IntentLogSuite, "test_nothing_but_a_delete_follows_a_pending_delete")
def edits_follow_deletes(broken: BrokenControls) -> None:
    def make(log: MemoryLog, admit: Any) -> Any:
        def reviving(record: Record, lead: int, now: float, *, create: bool) -> Admitted:
            answer: Admitted = admit(record, lead, now, create=create)
            if answer.state is not AdmitState.DELETED:
                return answer
            log.intents[record.ident] = record
            return Admitted(AdmitState.ADMITTED, record)

        return reviving

    on_admit(broken, make)


@breaks(IntentLogSuite, "test_journal_holds_the_newest_intent_of_each_key")
def journal_keeps_the_first_intent(broken: BrokenControls) -> None:
    def make(log: MemoryLog, admit: Any) -> Any:
        def first(record: Record, lead: int, now: float, *, create: bool) -> Admitted:
            before = log.intents.get(record.ident)
            answer: Admitted = admit(record, lead, now, create=create)
            if before is not None:
                log.intents[record.ident] = before
            return answer

        return first

    on_admit(broken, make)


@breaks(IntentLogSuite, "test_settle_keeps_a_key_with_a_newer_intent")
def settle_does_not_compare(broken: BrokenControls) -> None:
    def change(log: MemoryLog) -> None:
        def settle(seen: Sequence[Record]) -> None:
            for record in seen:
                log.intents.pop(record.ident, None)

        replace(log, "settle", lambda _: settle)

    broken.each_log(change)


@breaks(IntentLogSuite, "test_pending_parts_cover_the_journal_and_settled_pages_reach_all")
def pending_never_goes_round(broken: BrokenControls) -> None:
    """A cursor that passes what commits behind it."""

    def change(log: MemoryLog) -> None:
        passed: list[Any] = []

        def make(pending: Any) -> Any:
            def ahead(limit: int, part: tuple[int, int], _after: Any) -> list[Record]:
                found = [r for r in pending(10_000, part, None) if r.ident not in passed][:limit]
                passed.extend(record.ident for record in found)
                return found

            return ahead

        replace(log, "pending", make)

    broken.each_log(change)


@breaks(IntentLogSuite, "test_dirty_is_asked_by_routing_key_and_by_key")
def dirty_ignores_the_keys(broken: BrokenControls) -> None:
    broken.each_log(lambda log: replace(log, "dirty", lambda dirty: lambda routings, _keys: dirty(routings, None)))


@breaks(IntentLogSuite, "test_a_missing_journal_is_a_stale_route_and_never_clean")
def a_missing_journal_is_clean(broken: BrokenControls) -> None:
    broken.each_log(lambda log: replace(log, "live", lambda _: lambda: log.intents))


@breaks(
    IntentLogSuite, "test_fence_refuses_everything_and_lapses", "test_nothing_is_admitted_after_the_fence_under_writers"
)
def appends_pass_the_fence(broken: BrokenControls) -> None:
    def make(log: MemoryLog, admit: Any) -> Any:
        def leaking(record: Record, lead: int, now: float, *, create: bool) -> Admitted:
            answer: Admitted = admit(record, lead, 1e12 if create and log._fence == "lapsing" else now, create=create)
            return answer

        return leaking

    on_admit(broken, make)


@breaks(IntentLogSuite, "test_fence_refuses_everything_and_lapses")
def fence_stays_until_it_is_opened(broken: BrokenControls) -> None:
    broken.each_log(lambda log: replace(log, "fence", lambda fence: lambda flip, _until: fence(flip, 1e12)))


@breaks(IntentLogSuite, "test_nothing_is_admitted_after_the_fence_under_writers")
def gate_closes_a_little_late(broken: BrokenControls) -> None:
    def change(log: MemoryLog) -> None:
        def make(fence: Any) -> Any:
            return lambda flip, until: asyncio.get_running_loop().call_later(LATE_S, fence, flip, until)

        replace(log, "fence", make)

    broken.each_log(change)


@breaks(IntentLogSuite, "test_seal_and_open_follow_the_number_of_the_flip")
def seal_asks_for_no_fence(broken: BrokenControls) -> None:
    def change(log: MemoryLog) -> None:
        def seal(_flip: int, _now: float) -> None:
            log._fence = "sealed"

        replace(log, "seal", lambda _: seal)

    broken.each_log(change)


@breaks(IntentLogSuite, "test_seal_and_open_follow_the_number_of_the_flip")
def open_knows_no_flips(broken: BrokenControls) -> None:
    broken.each_log(lambda log: replace(log, "open", lambda open_: lambda _flip: open_(1 << 30)))


@breaks(IntentLogSuite, "test_a_gate_installed_sealed_opens_when_told")
def install_begins_again(broken: BrokenControls) -> None:
    def change(log: MemoryLog) -> None:
        def make(install: Any) -> Any:
            def afresh(*, sealed: bool) -> None:
                log.installed = False
                install(sealed=sealed)

            return afresh

        replace(log, "install", make)

    broken.each_log(change)


@breaks(IntentLogSuite, "test_remove_forgets_and_keeps_the_gate_shut_when_asked")
def remove_leaves_the_gate_open(broken: BrokenControls) -> None:
    def change(log: MemoryLog) -> None:
        def opened(**_options: Any) -> None:
            log._fence = "open"

        replace(log, "remove", lambda _: opened)

    broken.each_log(change)


@breaks(IntentLogSuite, "test_an_overtaken_coordinator_is_refused_at_every_step")
def tokens_are_not_compared(broken: BrokenControls) -> None:
    replace(broken.server, "check", lambda _: lambda token: None)
