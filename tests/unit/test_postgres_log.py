"""Positions in Postgres' log, and how connections are shared out, without a server."""

import pytest

from datalayer.clock import SystemClock
from datalayer.errors import ConfigurationError, Unavailable
from datalayer.settings import BackendUrl
from datalayer.stores.postgres.backend import create_backend
from datalayer.stores.postgres.database import PostgresDatabase
from datalayer.stores.postgres.replicas import end_of_log, place_of, share_out
from datalayer.stores.replicated import LogPosition, Replicated

SEGMENT, PAGE, SYSTEM = 16 << 20, 8192, 7_000_000_000_000_000_000
WAL = "0000000A0000000000000001"


@pytest.mark.parametrize(
    ("lsn", "end"),
    [
        (5 * PAGE + 104, 5 * PAGE + 104),
        (5 * PAGE + 24, 5 * PAGE),  # behind the header of a page without a record
        (5 * PAGE + 40, 5 * PAGE + 40),  # the rest of a record may take 16 bytes of a page
        (3 * SEGMENT + 40, 3 * SEGMENT),  # the first page of a segment has a longer header
        (3 * SEGMENT + 24, 3 * SEGMENT),
    ],
)
def test_the_log_ends_where_its_last_record_does(lsn: int, end: int) -> None:
    assert end_of_log((False, SYSTEM, WAL, lsn, SEGMENT, PAGE), "it") == LogPosition(SYSTEM, 10, end)


def test_a_standby_has_no_end_of_a_log_to_tell() -> None:
    with pytest.raises(Unavailable, match="it is a standby"):
        end_of_log((True, SYSTEM, None, None, SEGMENT, PAGE), "it")


@pytest.mark.parametrize(
    ("total", "replicas", "shares"), [(20, 0, (20, 20)), (20, 1, (10, 10)), (20, 2, (8, 6)), (2, 3, (1, 1))]
)
def test_connections_are_a_total_over_primary_and_replicas(total: int, replicas: int, shares: tuple[int, int]) -> None:
    assert share_out(total, replicas) == shares


def url(text: str) -> BackendUrl:
    return BackendUrl.parse(text)


def test_a_backend_has_its_replicas_by_where_they_are() -> None:
    replicas = [url("postgresql://u:p@r1/app"), url("postgresql://u:p@r2:5433/app")]
    backend = create_backend(
        "main", url("postgresql://u:p@a,b/app"), pool_max=9, clock=SystemClock(), replicas=replicas
    )
    assert isinstance(backend, Replicated)
    assert [(replica.name, replica.size) for replica in backend.replicas] == [("r1", 3), ("r2:5433", 3)]
    assert place_of(url("postgresql:///app?host=/run/pg")) == "/run/pg"


def test_a_replica_behind_a_pooler_is_refused() -> None:
    pooled = url("postgresql://u:secret@r1/app?pgbouncer=true")
    with pytest.raises(ConfigurationError, match="behind a pooler") as caught:
        create_backend("main", url("postgresql://a/app"), pool_max=9, clock=SystemClock(), replicas=[pooled])
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "attributes"),
    [
        ("postgresql://a/app", "read-write"),
        ("postgresql://a,b/app", "read-write"),
        ("postgresql://a/app?target_session_attrs=any", "any"),
        ("postgresql://a/app?pgbouncer=true", None),  # the pooler's server may change behind the connection
        ("postgresql://a,b/app?pgbouncer=true", "read-write"),
    ],
)
def test_a_connection_is_made_to_a_server_that_takes_writes_unless_told_otherwise(
    text: str, attributes: str | None
) -> None:
    assert PostgresDatabase(url(text), name="main").arguments.get("target_session_attrs") == attributes
