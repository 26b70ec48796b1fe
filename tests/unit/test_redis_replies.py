"""Answers of Redis, in pieces of any size: the same as the driver makes of them."""

import asyncio
from typing import Any

import pytest
from redis._parsers import _AsyncRESP2Parser
from redis.exceptions import BusyLoadingError, InvalidResponse, NoScriptError, ResponseError

from datalayer.stores.redis.replies import Replies
from datalayer.stores.redis.scripts import pack

WHOLE = (
    b":1\r\n+OK\r\n$-1\r\n$0\r\n\r\n*-1\r\n*0\r\n$12\r\nwith\r\n in it\r\n-NOSCRIPT no such script\r\n"
    b"*3\r\n:-7\r\n*2\r\n$2\r\nab\r\n-ERR inner\r\n*1\r\n*0\r\n-ERR last\r\n"
)
MANY = 10


def made(pieces: list[bytes], many: int = MANY) -> list[Any]:
    replies = Replies(many, _AsyncRESP2Parser.parse_error)
    told = [replies.feed(piece) for piece in pieces]
    assert told == [False] * (len(pieces) - 1) + [True]
    return replies.found


async def made_by_driver(whole: bytes, many: int) -> list[Any]:
    reader = asyncio.StreamReader()
    reader.feed_data(whole)
    parser = _AsyncRESP2Parser(1 << 16)

    class Connected:
        _reader, encoder = reader, None

    parser.on_connect(Connected())  # type: ignore[no-untyped-call]
    return [await parser.read_response(disable_decoding=True) for _ in range(many)]


def plain(found: Any) -> Any:
    if isinstance(found, list):
        return [plain(one) for one in found]
    return (type(found), str(found)) if isinstance(found, Exception) else found


async def test_answers_are_the_drivers_however_they_come() -> None:
    expected = plain(await made_by_driver(WHOLE, MANY))
    assert (NoScriptError, "no such script") in expected
    assert plain(made([WHOLE])) == expected
    assert plain(made([WHOLE[at : at + 1] for at in range(len(WHOLE))])) == expected
    for at in range(1, len(WHOLE)):
        assert plain(made([WHOLE[:at], WHOLE[at:]])) == expected


def test_a_long_text_in_many_pieces() -> None:
    whole = b"*2\r\n$1000000\r\n" + b"\r\n" * 500_000 + b"\r\n:5\r\n"
    pieces = [whole[at : at + 4096] for at in range(0, len(whole), 4096)]
    assert made(pieces, 1) == [[b"\r\n" * 500_000, 5]]


@pytest.mark.parametrize(
    ("sent", "raised"),
    [
        (b"-LOADING Redis is loading\r\n", BusyLoadingError),
        (b"%1\r\n", InvalidResponse),
        (b":1\r\n:2\r\n", InvalidResponse),
        (b"$x\r\n", InvalidResponse),
    ],
)
def test_what_ends_a_connection_is_raised(sent: bytes, raised: type[Exception]) -> None:
    with pytest.raises(raised):
        Replies(1, _AsyncRESP2Parser.parse_error).feed(sent)


def test_an_error_is_in_the_place_of_its_answer() -> None:
    found = made([b"-ERR no\r\n", b":1\r\n"], 2)
    assert isinstance(found[0], ResponseError)
    assert found[1] == 1


def test_a_command_as_it_is_sent() -> None:
    assert pack(("SET", b"k\r\n", "é", -12)) == b"*4\r\n$3\r\nSET\r\n$3\r\nk\r\n\r\n$2\r\n\xc3\xa9\r\n$3\r\n-12\r\n"
