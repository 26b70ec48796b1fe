"""Who counts as one caller, and the token that carries what it has written."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datalayer.clock import SystemClock
from datalayer.errors import InvalidArgument, InvalidToken
from datalayer.routing.consistency import (
    NEVER,
    Callers,
    Level,
    Position,
    ambient_caller,
    ambient_level,
    decode_token,
    encode_token,
    reading,
    reading_after,
)

U64 = st.integers(0, 2**64 - 1)
POSITIONS = st.builds(Position, U64, U64, st.integers(0, 2**32 - 1), U64)
HELD = Position(3, 7, 1, 100)
TOKEN = encode_token({"users": HELD})


def callers() -> Callers:
    return Callers(SystemClock())


async def in_a_task(found: Callers, domain: str) -> None:
    async def write() -> None:
        found.wrote(domain)

    await asyncio.create_task(write())


# --- callers -------------------------------------------------------------------------------------------------------


async def test_outside_of_blocks_all_of_a_layer_is_one_caller() -> None:
    mine = callers()
    assert mine.mark("users") == NEVER
    await in_a_task(mine, "users")
    assert mine.mark("users") > NEVER
    assert mine.mark("messages") == NEVER
    assert callers().mark("users") == NEVER


async def test_a_block_hides_its_writes_from_other_callers_and_begins_without_any() -> None:
    mine = callers()

    async def request() -> None:
        with reading_after(None):
            assert mine.mark("users") == NEVER
            mine.wrote("users")
            assert mine.mark("users") > NEVER

    await asyncio.gather(*(asyncio.create_task(request()) for _ in range(3)))
    assert mine.mark("users") == NEVER


async def test_a_block_includes_what_was_written_outside_of_every_block() -> None:
    mine = callers()
    mine.wrote("users")
    with reading_after(None):
        assert mine.mark("users") > NEVER


async def test_tasks_begun_in_a_block_belong_to_it() -> None:
    mine = callers()

    async def request() -> float:
        with reading_after(None):
            await asyncio.gather(in_a_task(mine, "users"), in_a_task(mine, "messages"))
            return min(mine.mark("users"), mine.mark("messages"))

    assert await asyncio.create_task(request()) > NEVER
    assert mine.mark("users") == NEVER


async def test_what_was_written_in_a_block_counts_after_it_in_the_same_task() -> None:
    mine = callers()

    async def work() -> tuple[float, list[Position]]:
        with reading_after(TOKEN):
            mine.wrote("users")
        return mine.mark("users"), mine.positions("users")

    mark, positions = await asyncio.create_task(work())
    assert mark > NEVER
    assert positions == [HELD]


async def test_a_write_after_a_block_counts_for_everybody_outside() -> None:
    mine = callers()

    async def work() -> None:
        with reading_after(None):
            pass
        mine.wrote("users")

    await asyncio.create_task(work())
    assert mine.mark("users") > NEVER


async def test_the_next_block_of_a_task_is_the_next_caller_and_what_follows_both_sees_both() -> None:
    mine = callers()

    async def work() -> None:
        with reading_after(TOKEN):
            mine.wrote("users")
        with reading_after(None):
            assert mine.mark("users") == NEVER
            assert mine.positions("users") == []
            mine.wrote("messages")
        assert min(mine.mark("users"), mine.mark("messages")) > NEVER
        assert ambient_caller.get() is not None
        assert ambient_caller.get().outer is None, "nothing piles up"  # type: ignore[union-attr]

    await asyncio.create_task(work())


async def test_a_block_within_a_block_tells_the_outer_one_and_inherits_its_demands() -> None:
    mine = callers()
    other = encode_token({"users": HELD._replace(lsn=200)})

    async def work() -> None:
        with reading_after(TOKEN):
            with reading_after(other):
                assert {position.lsn for position in mine.positions("users")} == {100, 200}
                mine.wrote("messages")
            assert mine.mark("messages") > NEVER
            assert mine.positions("users") == [HELD]
            around = ambient_caller.get()
        assert ambient_caller.get() is around

    await asyncio.create_task(work())


async def test_the_level_holds_inside_its_block_only() -> None:
    assert ambient_level.get() is None
    with reading("replica", 30):
        assert ambient_level.get() == Level("replica", 30)
        with reading("primary"):
            assert ambient_level.get() == Level("primary")
        assert ambient_level.get() == Level("replica", 30)
    assert ambient_level.get() is None


@pytest.mark.parametrize(("level", "bound"), [("nearest", None), ("replica", 0), ("replica", -1), ("replica", 1e400)])
def test_a_level_that_makes_no_sense_is_refused(level: str, bound: float | None) -> None:
    with pytest.raises(InvalidArgument), reading(level, bound):  # type: ignore[arg-type]
        pass
    assert ambient_level.get() is None


# --- the token -----------------------------------------------------------------------------------------------------


@given(st.dictionaries(st.sampled_from(["users", "messages", "messages:0-63", "é"]), POSITIONS))
def test_a_token_comes_back_as_it_was(positions: dict[str, Position]) -> None:
    token = encode_token(positions)
    assert decode_token(token) == positions
    assert token.isascii()
    assert set(token) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")


def test_two_domains_take_no_more_than_a_hundred_and_twenty_characters() -> None:
    assert len(encode_token({"users": HELD, "messages": HELD})) <= 120


@given(st.data())
def test_a_token_with_any_character_changed_is_refused(data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(TOKEN) - 2))  # the last one may hold unused bits
    other = data.draw(st.characters(codec="utf-8").filter(lambda c: c != TOKEN[at]))
    with pytest.raises(InvalidToken):
        decode_token(TOKEN[:at] + other + TOKEN[at + 1 :])


@given(st.text())
def test_text_that_is_no_token_is_refused(text: str) -> None:
    with pytest.raises(InvalidToken):
        decode_token(text)


@pytest.mark.parametrize("token", ["", TOKEN[:-4], TOKEN + "AAAA", "A" * 100_000, TOKEN.lower()])
def test_a_damaged_token_says_what_to_do(token: str) -> None:
    with pytest.raises(InvalidToken, match="go on without it"), reading_after(token):
        pass
    assert ambient_caller.get() is None
