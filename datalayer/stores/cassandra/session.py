"""cassandra-driver bridged to asyncio.

The driver runs its own reactor thread. A request is started on the event loop's thread (``execute_async`` does not
block) and completed in the reactor's; completions are collected in a deque and handed over by one
``call_soon_threadsafe`` per wake-up of the loop, so that a burst of answers costs one system call. Everything that
blocks (connecting, preparing, DDL) runs in a thread.

A cancelled caller does not end a request: its slot is given back when the driver has the answer, or gave up at the
request's own timeout.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING, Any, Final, TypeVar

from cassandra import DriverException
from cassandra.cluster import NoHostAvailable, ResultSet
from cassandra.connection import ConnectionException
from cassandra.policies import HostStateListener
from cassandra.protocol import ErrorMessage

from datalayer.errors import Closed, DeadlineExceeded, Overloaded, PreconditionFailed, Unavailable
from datalayer.stores.cassandra import cluster as clusters
from datalayer.stores.cassandra.failures import translate

if TYPE_CHECKING:
    from collections.abc import Callable

    from datalayer.clock import Clock, Deadline
    from datalayer.stores.cassandra.cluster import Target

T = TypeVar("T")
Row = tuple[Any, ...]

IN_FLIGHT_MAX: Final = 512
WAITING_MAX: Final = 10_000
REQUEST_TIMEOUT_S: Final = 10.0
"""For calls that carry no deadline: above the server's own timeouts (2 s a write, 5 s a read by default)."""
SCHEMA_TIMEOUT_S: Final = 60.0
_FIND_TABLE: Final = "SELECT table_name FROM system_schema.tables WHERE keyspace_name = ? AND table_name = ?"
_DRIVER_ERRORS: Final = (DriverException, NoHostAvailable, ErrorMessage, ConnectionException, OSError)
_log: Final = logging.getLogger(__name__)


class CassandraSession:
    """One connected driver session. Made and used on one event loop."""

    def __init__(self, name: str, target: Target, clock: Clock, *, in_flight_max: int = IN_FLIGHT_MAX) -> None:
        self.where: Final = f"backend {name} (cassandra at {target.contact})"
        self.on_down: Callable[[], None] = _nothing
        """Called on the loop whenever a node was lost: a cache may no longer hold."""
        self._target = target
        self._clock = clock
        self._in_flight_max = in_flight_max
        self._in_flight = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._answers: deque[tuple[asyncio.Future[Any], bool, Any, BaseException | None]] = deque()
        self._woken = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._cluster: Any = None
        self._session: Any = None
        self._prepared: dict[str, Any] = {}

    async def open(self) -> None:
        """Connect. Raises Unavailable when nothing answers, PreconditionFailed when the login is refused."""
        self._loop = asyncio.get_running_loop()
        cluster = await self._in_thread(lambda: clusters.build(self._target), write=False)
        try:
            self._session = await self._in_thread(cluster.connect, write=False)
        except BaseException as error:  # also a cancelled open leaves no threads behind
            await asyncio.to_thread(cluster.shutdown)
            if isinstance(error, Unavailable):
                self._check_data_centre(cluster)
            raise
        self._cluster = cluster
        cluster.register_listener(_Listener(self._host_down))

    async def close(self) -> None:
        """Close every connection; calls in flight end as Unavailable or OutcomeUnknown. Idempotent."""
        cluster, self._cluster, self._session = self._cluster, None, None
        if cluster is not None:
            await asyncio.to_thread(cluster.shutdown)
            self._hand_over()

    def _check_data_centre(self, cluster: Any) -> None:
        """The driver ignores every node outside local_dc: a misspelt one looks like an outage."""
        known = sorted({host.datacenter for host in cluster.metadata.all_hosts() if host.datacenter})
        if known and self._target.local_dc not in {None, *known}:
            msg = f"{self.where} has no data centre {self._target.local_dc!r}"
            raise PreconditionFailed(msg, hint=f"set local_dc in its URL to {' or '.join(known)}") from None

    @property
    def local_dc(self) -> str:
        """The data centre of the URL, or of the first node that answered."""
        if self._target.local_dc:
            return self._target.local_dc
        hosts = self._connected().cluster.metadata.all_hosts()
        return str(next(host.datacenter for host in hosts if host.datacenter))

    def replicas(self, keyspace: str, routing_key: bytes) -> frozenset[Any] | None:
        """The nodes that hold a partition, as far as the driver knows the ring; None where it does not."""
        metadata = self._connected().cluster.metadata
        return frozenset(metadata.get_replicas(keyspace, routing_key)) or None

    async def prepare(self, cql: str) -> Any:
        """The prepared statement of a CQL text; prepared once. StaleRoute when its table does not exist."""
        found = self._prepared.get(cql)
        if found is None:
            session = self._connected()
            found = self._prepared[cql] = await self._in_thread(lambda: session.prepare(cql), write=False)
        return found

    async def has_table(self, keyspace: str, table: str) -> bool:
        """Whether a table exists: asked before preparing, because the driver logs a failed one with a traceback."""
        statement = await self.prepare(_FIND_TABLE)
        return bool(await self.run(statement.bind((keyspace, table)), write=False))

    def forget(self, cql: str) -> None:
        """Drop a prepared statement from the cache (its table is gone)."""
        self._prepared.pop(cql, None)

    async def change_schema(self, cql: str) -> None:
        """Run one DDL statement and wait until all live nodes agree on the schema."""
        session = self._connected()

        def run() -> bool:
            future = session.execute_async(cql, timeout=SCHEMA_TIMEOUT_S)
            future.result()
            return bool(future.is_schema_agreed)

        if not await self._in_thread(run, write=True):
            msg = f"{self.where}: the nodes do not agree on the schema yet"
            raise Unavailable(msg, hint="check `nodetool describecluster`, then repeat")

    async def run(self, statement: Any, *, write: bool, deadline: Deadline | None = None) -> list[Row]:
        """Run one bound or batch statement; its rows.

        Raises DeadlineExceeded (read, or not sent), Unavailable, Overloaded, StaleRoute, Refused; OutcomeUnknown for
        a write that was sent and not confirmed.
        """
        future = await self.begin(statement, write=write, deadline=deadline)
        return await future or []

    async def begin(
        self, statement: Any, *, write: bool, deadline: Deadline | None = None
    ) -> asyncio.Future[list[Row] | None]:
        """Send one statement as soon as there is room; the future of its rows, failing as ``run`` does."""
        timeout_s = self._timeout_s(deadline)
        if self._in_flight >= self._in_flight_max or self._waiting:
            timeout_s = await self._wait_for_slot(timeout_s, deadline)
        else:
            self._in_flight += 1
        return self._send(statement, timeout_s, write=write)[0]

    async def read_page(
        self, statement: Any, rows_max: int, state: bytes | None, deadline: Deadline | None = None
    ) -> tuple[list[Row], bytes | None]:
        """One page of a longer read, and the driver's state for the next one (None: that was the last)."""
        statement.fetch_size = rows_max
        timeout_s = self._timeout_s(deadline)
        if self._in_flight >= self._in_flight_max or self._waiting:
            timeout_s = await self._wait_for_slot(timeout_s, deadline)
        else:
            self._in_flight += 1
        future, answer = self._send(statement, timeout_s, write=False, state=state)
        rows = await future or []
        return rows, ResultSet(answer, rows).paging_state

    def _send(
        self, statement: Any, timeout_s: float, *, write: bool, state: bytes | None = None
    ) -> tuple[asyncio.Future[list[Row] | None], Any]:
        assert self._loop is not None, "a session is open before it is used"
        future: asyncio.Future[list[Row] | None] = self._loop.create_future()
        try:
            answer = self._connected().execute_async(statement, timeout=timeout_s, paging_state=state)
        except BaseException:  # whatever it is, the slot is given back
            self._release()
            raise
        answer.add_callbacks(self._succeeded, self._failed, callback_args=(future, write), errback_args=(future, write))
        return future, answer

    # --- the reactor's thread ---

    def _succeeded(self, rows: list[Row] | None, future: asyncio.Future[Any], write: bool) -> None:  # noqa: FBT001
        self._answered((future, write, rows, None))

    def _failed(self, error: BaseException, future: asyncio.Future[Any], write: bool) -> None:  # noqa: FBT001
        self._answered((future, write, None, error))

    def _answered(self, answer: tuple[asyncio.Future[Any], bool, Any, BaseException | None]) -> None:
        # Append before looking at the flag, and clear the flag before emptying the deque: no answer can be left over.
        self._answers.append(answer)
        if not self._woken:
            self._woken = True
            self._call_loop(self._hand_over)

    def _host_down(self) -> None:
        self._call_loop(self._lost_host)

    def _call_loop(self, function: Callable[[], None]) -> None:
        assert self._loop is not None, "a session is open before it is used"
        try:
            self._loop.call_soon_threadsafe(function)
        except RuntimeError:
            _log.debug("the event loop has ended before its cassandra session was closed")

    # --- the loop's thread ---

    def _lost_host(self) -> None:
        self.on_down()

    def _hand_over(self) -> None:
        self._woken = False
        answers = self._answers
        while answers:
            future, write, rows, error = answers.popleft()
            self._release()
            if future.done():
                continue
            if error is None:
                future.set_result(rows)
            else:
                future.set_exception(translate(error, self.where, write=write))

    def _release(self) -> None:
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
        self._in_flight -= 1

    async def _wait_for_slot(self, timeout_s: float, deadline: Deadline | None) -> float:
        if len(self._waiting) >= WAITING_MAX:
            msg = f"{self.where}: {WAITING_MAX} calls are waiting already"
            raise Overloaded(msg)
        assert self._loop is not None, "a session is open before it is used"
        waiter = self._loop.create_future()
        self._waiting.append(waiter)
        try:
            async with asyncio.timeout(timeout_s):
                await waiter
            return self._timeout_s(deadline)
        except BaseException as error:  # also cancelled: a slot handed over meanwhile goes to the next one
            if waiter.done() and not waiter.cancelled():
                self._release()
            if isinstance(error, TimeoutError):
                raise DeadlineExceeded from None
            raise

    def _timeout_s(self, deadline: Deadline | None) -> float:
        if deadline is None:
            return REQUEST_TIMEOUT_S
        left = deadline.remaining()
        if left <= 0:
            raise DeadlineExceeded
        return left

    def _connected(self) -> Any:
        if self._session is None:
            raise Closed(f"{self.where} is not open")
        return self._session

    async def _in_thread(self, function: Callable[[], T], *, write: bool) -> T:
        try:
            return await asyncio.to_thread(function)
        except _DRIVER_ERRORS as error:
            failure = translate(error, self.where, write=write)
        # Outside the block: a refused login must not travel as the context either.
        raise failure


class _Listener(HostStateListener):  # type: ignore[misc]
    """Told by the driver, in its own threads."""

    def __init__(self, down: Callable[[], None]) -> None:
        self._down = down

    def on_down(self, host: object) -> None:
        self._down()

    def on_up(self, host: object) -> None:
        """Nothing to do: the driver has its pool again."""

    def on_add(self, host: object) -> None:
        """As on_up."""

    def on_remove(self, host: object) -> None:
        self._down()


def _nothing() -> None:
    """No cache to drop."""
