"""A call that blocks in a thread fails as the library's errors, whatever class the driver raises."""

from typing import NoReturn

import pytest
from cassandra import InvalidRequest
from cassandra.cluster import NoHostAvailable
from cassandra.connection import ConnectionShutdown

from datalayer.clock import SystemClock
from datalayer.errors import DatalayerError, OutcomeUnknown, Unavailable
from datalayer.settings import parse_settings
from datalayer.stores.cassandra.cluster import Target
from datalayer.stores.cassandra.failures import Refused
from datalayer.stores.cassandra.session import CassandraSession

_SETTINGS = {"backends": {"c": {"url": "cassandra://127.0.0.1/k?local_dc=d"}}, "control": {"url": "memory://"}}


@pytest.mark.parametrize(
    ("raised", "write", "expected"),
    [
        (ConnectionShutdown("reset by peer"), True, OutcomeUnknown),
        (ConnectionShutdown("reset by peer"), False, Unavailable),
        (ConnectionResetError(104, "reset by peer"), True, OutcomeUnknown),
        (NoHostAvailable("none", {}), True, Unavailable),
        (InvalidRequest("no"), True, Refused),
    ],
)
async def test_driver_s_error_in_a_thread_is_translated(
    raised: Exception, write: bool, expected: type[DatalayerError]
) -> None:
    url = parse_settings(_SETTINGS).backends["c"].url
    assert url is not None
    session = CassandraSession("c", Target.of(url), SystemClock())

    def fails() -> NoReturn:
        raise raised

    with pytest.raises(expected) as caught:
        await session._in_thread(fails, write=write)
    assert type(caught.value) is expected


async def test_a_mistake_of_ours_in_a_thread_stays_what_it_is() -> None:
    url = parse_settings(_SETTINGS).backends["c"].url
    assert url is not None
    session = CassandraSession("c", Target.of(url), SystemClock())
    with pytest.raises(ZeroDivisionError):
        await session._in_thread(lambda: 1 // 0, write=False)
