"""What the explorer of claims is let loose on: who does what to whom, and what must come of it when nothing fails."""

from collections.abc import Callable
from dataclasses import replace
from uuid import UUID

from datalayer.domains.record import Record
from datalayer.domains.users import (
    CreateUser,
    DeleteUser,
    UpdateUser,
    UserMutation,
    claim_key,
    claim_record,
    created,
    to_record,
    tombstone,
)
from datalayer.ids import uuid7_at
from datalayer.routing.claims import GRACE_US
from tests.simulation.claims_actors import OLD, YOUNG, Actor, Ends
from tests.simulation.claims_explorer import Scenario

MADE = YOUNG - 5_000_000
LONG_AGO = YOUNG - 3 * GRACE_US


def id_of(name: str) -> UUID:
    return uuid7_at(MADE, ord(name))


A, B, C = map(id_of, "ABC")


def create(who: UUID, name: str, email: str | None = None) -> CreateUser:
    return CreateUser(who, name, email)


def rename(who: UUID, name: str, expected: int | None = None) -> UpdateUser:
    return UpdateUser(who, (("username", name),), expected)


def change(who: UUID, name: str, email: str | None) -> UpdateUser:
    return UpdateUser(who, (("username", name), ("email", email)))


def user(who: UUID, name: str, email: str | None = None) -> Record:
    return to_record(created(CreateUser(who, name, email)))


def orphan(who: UUID, name: str, field: str = "username") -> Record:
    """A claim that was taken long ago for a row that was never written."""
    return claim_record(claim_key(field, name), who, LONG_AGO)


def gone(who: UUID) -> Record:
    return tombstone("user", who.bytes, YOUNG)


def does(*mutations: UserMutation, now_us: int = YOUNG, tries: int = 1) -> Actor:
    return Actor(mutations, now_us, tries)


def in_one(*mutations: UserMutation) -> Actor:
    return Actor(mutations, in_one_database=True)


# --- expectations ------------------------------------------------------------------------------------------------------


def words(ends: Ends) -> list[str]:
    """How each client's last try ended."""
    return [of_one[-1].word if of_one else "" for of_one in ends]


def all_done(ends: Ends) -> bool:
    return all(word == "done" for word in words(ends) if word)


def one_wins(ends: Ends) -> bool:
    return words(ends).count("done") == 1


def somebody_wins(ends: Ends) -> bool:
    return "done" in words(ends)


def one_wins_others(*allowed: str) -> Callable[[Ends], bool]:
    def judge(ends: Ends) -> bool:
        return one_wins(ends) and set(words(ends)) <= {"done", *allowed}

    return judge


def each_among(*allowed: set[str]) -> Callable[[Ends], bool]:
    def judge(ends: Ends) -> bool:
        return all(word in these for word, these in zip(words(ends), allowed, strict=True))

    return judge


DONE = {"done"}
TAKEN = {"done", "AlreadyExists username"}
FOUND = {"done", "NotFound"}

# --- scenarios ---------------------------------------------------------------------------------------------------------

PAIRS = {
    "two creates of one name": Scenario(
        (does(create(A, "x")), does(create(B, "x"))), expect=one_wins_others("AlreadyExists username")
    ),
    "two creates of one name, given up and free": Scenario(
        (does(create(A, "x")), does(create(B, "x"))),
        orphans=(claim_record(claim_key("username", "x"), C, YOUNG + 7, deleted=True),),
        expect=one_wins_others("AlreadyExists username"),
    ),
    "two creates of one name and address": Scenario(
        (does(create(A, "x", "e")), does(create(B, "x", "e"))),
        expect=one_wins_others("AlreadyExists username", "AlreadyExists email"),
    ),
    "two creates of one address": Scenario(
        (does(create(A, "x", "e")), does(create(B, "y", "e"))), expect=one_wins_others("AlreadyExists email")
    ),
    "the second claim is refused": Scenario(
        (does(create(A, "x", "e")), does(create(C, "x"))),
        users=(user(B, "y", "e"),),
        expect=each_among({"AlreadyExists email", "AlreadyExists username"}, TAKEN),
    ),
    "what was refused leaves the name free": Scenario(
        (Actor((create(A, "x", "e"), create(C, "x")), goes_on=True), does(change(B, "y", "e"))),
        users=(user(B, "y"),),
        expect=lambda ends: "done" in [end.word for end in ends[0]],
    ),
    "one create in two processes": Scenario((does(create(A, "x", "e")), does(create(A, "x", "e"))), expect=all_done),
    "one id with two names": Scenario((does(create(A, "x")), does(create(A, "y"))), expect=somebody_wins),
    "create against rename to it": Scenario(
        (does(create(A, "x")), does(rename(B, "x"))),
        users=(user(B, "y"),),
        expect=one_wins_others("AlreadyExists username"),
    ),
    "two renames to one name": Scenario(
        (does(rename(A, "z")), does(rename(B, "z"))),
        users=(user(A, "x"), user(B, "y")),
        expect=one_wins_others("AlreadyExists username"),
    ),
    "rename away against create": Scenario(
        (does(rename(A, "y")), does(create(B, "x"))), users=(user(A, "x"),), expect=each_among(DONE, TAKEN)
    ),
    "rename away and back against create": Scenario(
        (does(rename(A, "y"), rename(A, "x")), does(create(B, "x"))),
        users=(user(A, "x"),),
        expect=each_among(TAKEN, TAKEN),
    ),
    "two renames of one user to one name": Scenario(
        (does(rename(A, "y")), does(rename(A, "y"))), users=(user(A, "x"),), expect=all_done
    ),
    "two renames of one user": Scenario(
        (does(rename(A, "y")), does(rename(A, "z"))), users=(user(A, "x"),), expect=all_done
    ),
    "there and back": Scenario(
        (does(rename(A, "y")), does(rename(A, "y"), rename(A, "x"))), users=(user(A, "x"),), expect=all_done
    ),
    "name and address there and back": Scenario(
        (does(change(A, "y", "f")), does(change(A, "x", "e"))), users=(user(A, "x", "e"),), expect=all_done
    ),
    "name and address are different changes": Scenario(
        (does(rename(A, "y")), does(UpdateUser(A, (("email", "f"),)))), users=(user(A, "x", "e"),), expect=all_done
    ),
    "a change without names is a transaction": Scenario(
        (does(rename(A, "y"), rename(A, "x")), in_one(UpdateUser(A, (("display_name", "a"),)))),
        users=(user(A, "x"),),
        expect=all_done,
    ),
    "rename to one's own name in capitals": Scenario(
        (does(rename(A, "X")), does(rename(A, "y"))), users=(user(A, "x"),), expect=all_done
    ),
    "delete against rename": Scenario(
        (does(DeleteUser(A)), does(rename(A, "y"))), users=(user(A, "x"),), expect=each_among(DONE, FOUND)
    ),
    "two deletes": Scenario((does(DeleteUser(A)), does(DeleteUser(A))), users=(user(A, "x", "e"),), expect=all_done),
    "delete against create of the name": Scenario(
        (does(DeleteUser(A)), does(create(B, "x"))), users=(user(A, "x"),), expect=each_among(DONE, TAKEN)
    ),
    "delete and create again against create": Scenario(
        (does(DeleteUser(A), create(B, "x")), does(create(C, "x"))), users=(user(A, "x"),), expect=one_wins
    ),
    "create against delete of it": Scenario(
        (does(create(A, "x")), does(DeleteUser(A))), expect=each_among(DONE, FOUND)
    ),
    "create against rename of it": Scenario(
        (does(create(A, "x")), does(rename(A, "y"), rename(A, "x"))), expect=each_among(DONE, FOUND)
    ),
    "two names are swapped": Scenario(
        (does(rename(A, "t"), rename(B, "x"), rename(A, "y")), does(UpdateUser(B, (("display_name", "b"),)))),
        users=(user(A, "x"), user(B, "y")),
        expect=all_done,
    ),
    "two names are swapped while both are wanted": Scenario(
        (does(rename(A, "t"), rename(B, "x"), rename(A, "y")), does(create(C, "x"))),
        users=(user(A, "x"), user(B, "y")),
        expect=each_among(TAKEN, TAKEN),
    ),
    "two compare-and-sets of one version": Scenario(
        (does(rename(A, "y", MADE)), does(rename(A, "z", MADE))),
        users=(user(A, "x"),),
        expect=one_wins_others("Conflict"),
    ),
    "compare-and-set against delete": Scenario(
        (does(rename(A, "y", MADE)), does(DeleteUser(A, MADE))),
        users=(user(A, "x"),),
        expect=one_wins_others("Conflict", "NotFound"),
    ),
    "two who want an orphan": Scenario(
        (does(create(A, "x")), does(create(B, "x"))),
        orphans=(orphan(C, "x"),),
        expect=one_wins_others("AlreadyExists username"),
    ),
    "an orphan's owner is changed": Scenario(
        (does(create(A, "y")), does(rename(B, "z"))),
        users=(user(B, "x"),),
        orphans=(orphan(B, "y"),),
        expect=all_done,
    ),
    "an orphan's owner wants it": Scenario(
        (does(create(A, "y")), does(rename(B, "y"))),
        users=(user(B, "x"),),
        orphans=(orphan(B, "y"),),
        expect=one_wins_others("AlreadyExists username"),
    ),
    "an orphan of a deleted user": Scenario(
        (does(create(A, "x")), does(create(B, "x"))),
        orphans=(orphan(C, "x"), gone(C)),
        expect=one_wins_others("AlreadyExists username"),
    ),
    "an orphan address": Scenario(
        (does(create(A, "x", "e")), does(rename(B, "y"))),
        users=(user(B, "z"),),
        orphans=(orphan(B, "y"), orphan(C, "e", "email")),
        expect=all_done,
    ),
    "the orphan's create comes again": Scenario(
        (does(create(A, "x")), does(create(C, "x"))),
        orphans=(orphan(C, "x"),),
        expect=one_wins,
    ),
    "clients who try again": Scenario(
        (does(create(A, "x"), tries=2), does(create(B, "x"), tries=2)), expect=one_wins_others("AlreadyExists username")
    ),
    "a client who renames again": Scenario(
        (does(rename(A, "y"), tries=2), does(rename(A, "z"), rename(A, "x"))), users=(user(A, "x"),), expect=all_done
    ),
}


def sleeping(scenario: Scenario, sleeper: int) -> Scenario:
    """To all but one, every claim that is taken now looks like an orphan: what the sleeper does has lasted too long."""
    actors = tuple(actor if at == sleeper else replace(actor, now_us=OLD) for at, actor in enumerate(scenario.actors))
    return replace(scenario, actors=actors, expect=None, races=3)


def swept(scenario: Scenario, now_us: int) -> Scenario:
    """The first actor's work during a sweep."""
    sweeper = Actor(now_us=now_us, sweeps=True)
    return replace(scenario, actors=(scenario.actors[0], sweeper), expect=None)


_SWEEPER = Actor(now_us=OLD, sweeps=True)
IN_ONE_DATABASE = {
    "the orphan's create comes again": Scenario((in_one(create(C, "x")), _SWEEPER), orphans=(orphan(C, "x"),)),
    "the orphan's owner wants it": Scenario(
        (in_one(rename(A, "y"), rename(A, "x"), rename(A, "y")), _SWEEPER),
        users=(user(A, "x"),),
        orphans=(orphan(A, "y"),),
        expect=all_done,
    ),
    "the orphan's owner is deleted": Scenario(
        (in_one(DeleteUser(A), create(B, "x")), _SWEEPER),
        users=(user(A, "x"),),
        orphans=(orphan(A, "y"),),
        expect=all_done,
    ),
    "another wants it": Scenario(
        (in_one(create(A, "x")), in_one(rename(B, "x")), _SWEEPER),
        users=(user(B, "y"),),
        orphans=(orphan(C, "x"),),
        expect=each_among(TAKEN, TAKEN, {""}),
    ),
    "names are used again": Scenario(
        (in_one(rename(A, "y"), rename(A, "x")), in_one(create(B, "y", "e"), DeleteUser(B)), _SWEEPER),
        users=(user(A, "x"),),
    ),
}
SLEEPERS = {f"{name}, p{at} sleeps": sleeping(scenario, at) for name, scenario in PAIRS.items() for at in range(2)}
SWEEPS = {
    f"{name}, during a sweep{' by a fast clock' if now == OLD else ''}": swept(scenario, now)
    for name, scenario in PAIRS.items()
    for now in (YOUNG, OLD)
}
TRIOS = {
    "three creates of one name": Scenario(
        tuple(does(create(who, "x")) for who in (A, B, C)), expect=one_wins_others("AlreadyExists username")
    ),
    "three creates of one name, one awake": Scenario(
        (does(create(A, "x")), does(create(B, "x")), does(create(C, "x"), now_us=OLD)), races=3
    ),
    "three creates that cross": Scenario(
        (does(create(A, "x", "e")), does(create(B, "y", "e")), does(create(C, "x", "f"))), expect=somebody_wins
    ),
    "three renames of one user": Scenario(
        (does(rename(A, "y")), does(rename(A, "z")), does(rename(A, "x"))), users=(user(A, "x"),), expect=all_done
    ),
    "rename, delete, create": Scenario(
        (does(rename(A, "y")), does(DeleteUser(A)), does(create(B, "x"))),
        users=(user(A, "x"),),
        expect=each_among(FOUND, DONE, TAKEN),
    ),
    "one create in two processes against another": Scenario(
        (does(create(A, "x")), does(create(A, "x")), does(create(B, "x"))),
        expect=lambda ends: (
            words(ends) in (["done", "done", "AlreadyExists username"], ["AlreadyExists username"] * 2 + ["done"])
        ),
    ),
    "one create in two processes against one who is awake": Scenario(
        (does(create(A, "x")), does(create(A, "x")), does(create(B, "x"), now_us=OLD)), races=3
    ),
    "two renames of one user against one who is awake": Scenario(
        (does(rename(A, "y")), does(rename(A, "y")), does(create(B, "y"), now_us=OLD)),
        users=(user(A, "x"),),
        races=3,
    ),
    "two who want an orphan, and its owner": Scenario(
        (does(create(A, "y")), does(create(C, "y")), does(rename(B, "y"))),
        users=(user(B, "x"),),
        orphans=(orphan(B, "y"),),
        expect=one_wins,
    ),
    "create, create, sweep": Scenario(
        (does(create(A, "x")), does(create(B, "x")), Actor(now_us=OLD, sweeps=True)),
        races=3,
    ),
    "rename, back, sweep": Scenario(
        (does(rename(A, "y")), does(rename(A, "x")), Actor(now_us=OLD, sweeps=True)), users=(user(A, "x"),), races=3
    ),
    "two names are swapped, both ways": Scenario(
        (does(rename(A, "t"), rename(A, "y")), does(rename(B, "x")), does(rename(B, "y"))),
        users=(user(A, "x"), user(B, "y")),
    ),
}
