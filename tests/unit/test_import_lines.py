"""What a line of an import becomes, and the one sentence for each line that becomes nothing."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datalayer.domains.messages import Append
from datalayer.errors import InvalidArgument
from datalayer.ids import check_id, id_time_us
from datalayer.importing import conversation_id, message_of, sender_id

NOW = 1_800_000_000_000_000
GOOD: dict[str, Any] = {"conversation": "a/b", "id": 7, "sender": 3, "sent_at": 1_542_555_824, "body": "hi"}


def parse(raw: bytes | str | dict[str, Any], body_max_bytes: int = 1000) -> Append:
    data = json.dumps(raw) if isinstance(raw, dict) else raw
    return message_of(
        data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data,
        body_max_bytes=body_max_bytes,
        now_us=NOW,
    )[0]


def refused(raw: bytes | str | dict[str, Any], body_max_bytes: int = 1000) -> str:
    with pytest.raises(InvalidArgument) as caught:
        parse(raw, body_max_bytes)
    return caught.value.message


def test_a_line_is_always_the_same_message() -> None:
    first = parse(GOOD)
    assert parse(json.dumps(GOOD, indent=2, sort_keys=True)) == first
    assert (first.conversation_id, first.sender_id, first.body) == (conversation_id("a/b"), sender_id(3), "hi")
    assert check_id(first.id, NOW) == first.id
    assert id_time_us(first.id) // 1_000_000 == GOOD["sent_at"]


@pytest.mark.parametrize(
    "change", [{"conversation": "a/c"}, {"id": 8}, {"id": "7"}, {"sent_at": 1_542_555_825}, {"id": None}]
)
def test_another_message_has_another_id(change: dict[str, Any]) -> None:
    assert parse(GOOD | change).id != parse(GOOD).id


@pytest.mark.parametrize("change", [{"sender": 4}, {"body": "ho"}, {"conversation": 5}, {"sent_at": 1}])
def test_without_an_id_all_of_the_line_makes_it(change: dict[str, Any]) -> None:
    plain = {name: value for name, value in GOOD.items() if name != "id"}
    assert parse(plain).id == parse(plain).id
    assert parse(plain | change).id != parse(plain).id


def test_integer_ids_of_one_instant_keep_their_order() -> None:
    ids = [parse(GOOD | {"id": number}).id for number in (1, 2, 3, 4096, 4097, 10**9)]
    assert ids == sorted(ids)


def test_conversations_and_senders_of_one_name_have_two_ids() -> None:
    assert conversation_id("x") != sender_id("x")
    assert conversation_id({"b": 1, "a": 2}) == conversation_id({"a": 2, "b": 1})


@pytest.mark.parametrize(
    ("sent_at", "us"),
    [
        (0, 0),
        (1.5, 1_500_000),
        (1_542_555_824.123456, 1_542_555_824_123_456),
        ("2018-11-18T15:43:44Z", 1_542_555_824_000_000),
        ("2018-11-18T15:43:44", 1_542_555_824_000_000),
        ("2018-11-18T16:43:44.000001+01:00", 1_542_555_824_000_001),
        ("2018-11-18", 1_542_499_200_000_000),
        (NOW // 1_000_000 + 59, NOW + 59_000_000),
    ],
)
def test_times_are_taken_exactly(sent_at: object, us: int) -> None:
    assert id_time_us(parse(GOOD | {"sent_at": sent_at, "id": "text"}).id) == us


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        ('{"conversation": "a", "id": 1, "sen', "not valid JSON at character 32 (Unterminated string starting at)"),
        ("", "not valid JSON at character 1 (Expecting value)"),
        ("[1, 2]", "a JSON object is expected, not list"),
        ("7", "a JSON object is expected, not int"),
        (b"\xff\xfe{}", "not UTF-8 at byte 0"),
        ("[" * 100_000, "JSON nested too deeply"),
        ('{"id": ' + "9" * 5000 + "}", "a number with too many digits"),
        ({}, "conversation and sender and sent_at and body missing"),
        (GOOD | {"body": None}, "body missing"),
        (GOOD | {"body": 7}, "body must be text, not int"),
        (GOOD | {"body": "x" * 1001}, "body is 1001 bytes; the limit is 1000"),
        (GOOD | {"body": "a\0b"}, "body contains the character NUL, which no store keeps alike"),
        (
            GOOD | {"body": "ab\ud800"},
            "body contains a lone surrogate at position 2, which is not valid Unicode",
        ),
        (GOOD | {"conversation": "\udfff"}, "conversation contains a lone surrogate, which is not valid Unicode"),
        (GOOD | {"sender": "\udfff"}, "sender contains a lone surrogate, which is not valid Unicode"),
        (GOOD | {"id": "\udfff"}, "id contains a lone surrogate, which is not valid Unicode"),
        (GOOD | {"sent_at": "yesterday"}, "sent_at is no ISO time"),
        (GOOD | {"sent_at": True}, "sent_at is neither seconds since 1970 nor an ISO time"),
        (GOOD | {"sent_at": [1]}, "sent_at is neither seconds since 1970 nor an ISO time"),
        (GOOD | {"sent_at": float("nan")}, "sent_at is neither seconds since 1970 nor an ISO time"),
        (GOOD | {"sent_at": float("inf")}, "sent_at is neither seconds since 1970 nor an ISO time"),
        (GOOD | {"sent_at": -1}, "sent_at lies before 1970"),
        (GOOD | {"sent_at": "1969-12-31T23:59:59Z"}, "sent_at lies before 1970"),
        (
            GOOD | {"sent_at": 1_542_555_824_000},
            "sent_at is beyond the year 9999; seconds since 1970 are expected, not milliseconds",
        ),
        (GOOD | {"sent_at": NOW // 1_000_000 + 61}, "sent_at lies more than 60 s in the future"),
        (GOOD | {"sent_at": "9999-12-31T23:59:59-14:00"}, "sent_at lies more than 60 s in the future"),
    ],
)
def test_a_bad_line_is_one_sentence(raw: bytes | str | dict[str, Any], says: str) -> None:
    assert refused(raw) == says


def test_keys_that_are_not_imported_are_told() -> None:
    raw = json.dumps(GOOD | {"reactions": 3, "edited": False}).encode()
    assert message_of(raw, body_max_bytes=10, now_us=NOW)[1] == {"reactions", "edited"}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(
    st.fixed_dictionaries({}, optional=dict.fromkeys(GOOD, JSON))
    | st.fixed_dictionaries(dict.fromkeys(GOOD, JSON) | {"sent_at": st.integers(0, 2 * 10**9)})
    | JSON
)
def test_any_json_is_a_message_or_one_sentence(value: object) -> None:
    append, reason = tried(json.dumps(value))
    if append is None:
        assert 0 < len(reason) < 200
        assert "\n" not in reason
    else:
        check_id(append.id, NOW)
        append.body.encode()


def tried(raw: str) -> tuple[Append | None, str]:
    try:
        return parse(raw), ""
    except InvalidArgument as error:
        return None, error.message


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_one_sentence(raw: bytes) -> None:
    with pytest.raises(InvalidArgument):
        parse(raw)


@given(st.datetimes(datetime(1970, 1, 1), datetime(2020, 1, 1)))  # noqa: DTZ001 - hypothesis takes naive bounds
def test_any_iso_time_comes_back(moment: datetime) -> None:
    aware = moment.replace(tzinfo=UTC)
    first = id_time_us(parse(GOOD | {"sent_at": aware.isoformat(), "id": "x"}).id)
    assert first == round((aware - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() * 1e6)
