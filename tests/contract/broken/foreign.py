"""Guards that fail against programs that do not know the library."""

from collections.abc import Sequence
from typing import Any

from datalayer.domains.record import Key, Record
from datalayer.testing.contract import ForeignWriterSuite
from tests.contract.broken.breakage import BrokenStores, Registry, replace
from tests.contract.broken.guard import Place, sides
from tests.contract.broken.port import overwrite

FOREIGN = Registry()
breaks = FOREIGN.breaks


@breaks(
    ForeignWriterSuite,
    "test_foreign_insert_is_journalled_and_its_program_is_named",
    "test_foreign_update_that_keeps_the_version_is_lifted",
)
def foreign_writes_are_not_seen(broken: BrokenStores) -> None:
    def write(place: Place, record: Record, *, program: str) -> None:
        overwrite(broken.server.table(place), record)

    replace(broken.server, "foreign_write", lambda _: write)


@breaks(ForeignWriterSuite, "test_foreign_insert_is_journalled_and_its_program_is_named")
def foreign_programs_are_not_named(broken: BrokenStores) -> None:
    replace(broken.server, "_seen_foreign", lambda _: lambda place, program: None)


@breaks(ForeignWriterSuite, "test_foreign_update_that_keeps_the_version_is_lifted")
def foreign_updates_keep_their_version(broken: BrokenStores) -> None:
    def write(place: Place, record: Record, *, program: str) -> None:
        overwrite(broken.server.table(place), record)
        broken.server._journal(place, record)

    replace(broken.server, "foreign_write", lambda _: write)


@breaks(
    ForeignWriterSuite,
    "test_foreign_delete_becomes_a_final_tombstone_in_the_journal",
    "test_an_older_record_does_not_bring_back_what_a_foreign_program_deleted",
)
def foreign_deletes_leave_no_trace(broken: BrokenStores) -> None:
    def delete(place: Place, key: Key, *, program: str) -> None:
        broken.server.table(place).remove(key)

    replace(broken.server, "foreign_delete", lambda _: delete)


@breaks(ForeignWriterSuite, "test_foreign_delete_becomes_a_final_tombstone_in_the_journal")
def foreign_deletes_have_no_lead(broken: BrokenStores) -> None:
    def make(delete: Any) -> Any:
        def low(place: Place, key: Key, *, program: str) -> None:
            before = broken.server.table(place).records[key].version
            delete(place, key, program=program)
            for side in sides(broken.server, place).values():
                side.journal[key] = before + 2

        return low

    replace(broken.server, "foreign_delete", make)


@breaks(ForeignWriterSuite, "test_an_older_record_does_not_bring_back_what_a_foreign_program_deleted")
def replayer_does_not_consult_the_tombstones(broken: BrokenStores) -> None:
    def apply_as(place: Place, _attempt: int, records: Sequence[Record]) -> None:
        for record in records:
            broken.server.put(broken.server.table(place), record)

    replace(broken.server, "apply_as", lambda _: apply_as)


@breaks(ForeignWriterSuite, "test_fence_refuses_foreign_programs_too")
def fence_is_the_librarys_own(broken: BrokenStores) -> None:
    def unfenced(method: Any) -> Any:
        def passing(*args: Any, **options: Any) -> Any:
            check = broken.server._refuse_fenced
            broken.server._refuse_fenced = lambda _place: None
            try:
                return method(*args, **options)
            finally:
                broken.server._refuse_fenced = check

        return passing

    replace(broken.server, "foreign_write", unfenced)


@breaks(ForeignWriterSuite, "test_a_removed_guard_lets_foreign_programs_be")
def remove_does_nothing(broken: BrokenStores) -> None:
    replace(broken.server, "remove", lambda _: lambda *args, **options: None)
