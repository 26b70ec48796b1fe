"""The one cell of a message: the fast encoder writes what the canonical one writes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datalayer.domains.messages import MESSAGE
from datalayer.domains.record import Record, encode_cell
from datalayer.stores.cassandra import cells

_IDS = st.binary(min_size=16, max_size=16)
_TEXT = st.text(st.characters(codec="utf-8"))
_RECORDS = st.builds(
    Record,
    st.just("message"),
    st.binary(min_size=32, max_size=32),
    st.integers(-(1 << 63) + 1, (1 << 63) - 1),
    st.booleans(),
    st.tuples(
        _IDS,
        _TEXT,
        st.sampled_from(["text", "image"]) | _TEXT,
        st.none() | _IDS,
        st.lists(_IDS, max_size=3).map(b"".join),
        st.none() | st.integers(-(1 << 63), (1 << 63) - 1),
        st.just("{}") | _TEXT,
    ),
)


@given(_RECORDS)
def test_cell_is_the_canonical_text(record: Record) -> None:
    cell = cells.encode(record)
    assert cell == encode_cell(MESSAGE, record).encode()
    assert cells.decode(record.key[:16], record.key[16:], cell.decode()) == record


@pytest.mark.parametrize("code", [*range(0x21), 0x22, 0x5C, 0x7F, 0xA0, 0x2028, 0x1F600])
def test_every_character_that_needs_an_escape_gets_the_canonical_one(code: int) -> None:
    for body in (chr(code), f'a{chr(code)}\n"\\{chr(code)}z'):
        record = Record("message", bytes(32), 1, False, (bytes(16), body, "text", None, b"", None, "{}"))
        assert cells.encode(record) == encode_cell(MESSAGE, record).encode()


def test_lone_surrogate_has_no_cell() -> None:
    record = Record("message", bytes(32), 1, False, (bytes(16), "ab\ud800", "text", None, b"", None, "{}"))
    with pytest.raises(UnicodeEncodeError) as caught:
        cells.encode(record)
    assert caught.value.start == 2
