"""Requests over the driver's connections, in threads.

The driver's asynchronous client needs aiohttp and costs more of a processor than a hop to a thread. Its transport is left
out: it repeats what may have been applied. What is sent and read is bytes here, so that a bulk body is encoded once.

A cancelled caller does not end a request: its thread is given back when the server has answered, or at the request's own
timeout.
"""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from datalayer.errors import Closed, DeadlineExceeded, OutcomeUnknown
from datalayer.stores.opensearch.faults import CAUGHT, answered, broken, never_sent

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from datalayer.clock import Deadline
    from datalayer.stores.opensearch.target import Target

CALL_S: Final = 30.0
"""The bound of a call that carries no deadline."""
BULK_HEADERS: Final = {"content-type": "application/x-ndjson"}
_ERRORS: Final = tuple(range(400, 600))


class Answer(NamedTuple):
    """Status and parsed body."""

    status: int
    body: Any


class OpenSearchSession:
    """One configured cluster. Made and used on one event loop."""

    def __init__(self, name: str, target: Target, *, in_flight_max: int) -> None:
        self.where: Final = f"backend {name} (opensearch at {target.contact})"
        self._connections = target.connections(in_flight_max)
        self._first = 0
        self._threads: ThreadPoolExecutor | None = ThreadPoolExecutor(in_flight_max, f"datalayer-{name}")

    async def close(self) -> None:
        """Give everything back. Idempotent."""
        threads, self._threads = self._threads, None
        if threads is None:
            return
        threads.shutdown(wait=False, cancel_futures=True)
        for connection in self._connections:
            connection.close()

    async def call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | bytes | None = None,
        *,
        write: bool,
        params: Mapping[str, Any] | None = None,
        deadline: Deadline | None = None,
        allow: Collection[int] = (),
        timeout_s: float = CALL_S,
    ) -> Answer:
        """One request; ``allow``: errors that are an answer to the caller.

        Raises StaleRoute for an index that is not there, Unavailable, DeadlineExceeded, OutcomeUnknown for a write that
        was sent and not confirmed, PreconditionFailed (login, certificate), Refused.
        """
        left = timeout_s if deadline is None else deadline.remaining()
        if left <= 0:
            raise DeadlineExceeded
        if self._threads is None:
            raise Closed
        raw = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        headers = BULK_HEADERS if isinstance(body, bytes) else None
        loop = asyncio.get_running_loop()
        options = {"params": params, "body": raw, "timeout": left, "headers": headers, "ignore": _ERRORS}
        running = loop.run_in_executor(self._threads, self._ask, method, path, options)
        try:
            # the driver bounds each wait for a packet, not the whole
            async with asyncio.timeout(left):
                status, text = await running
        except TimeoutError:
            if write:
                raise OutcomeUnknown(f"{self.where} did not confirm a write in time") from None
            raise DeadlineExceeded(f"{self.where} did not answer a read in time") from None
        except CAUGHT as error:
            raise broken(error, self.where, write=write) from error
        parsed = _parsed(text)
        if status >= 400 and status not in allow:
            raise answered(status, parsed, self.where, write=write)
        return Answer(status, parsed)

    def _ask(self, method: str, path: str, options: Mapping[str, Any]) -> tuple[int, str]:
        """In a thread: ask the host that answered last, and the others where nothing can have been sent."""
        for turn in range(len(self._connections)):
            at = (self._first + turn) % len(self._connections)
            try:
                status, _, text = self._connections[at].perform_request(method, path, **options)
            except CAUGHT as error:
                if never_sent(error) and turn + 1 < len(self._connections):
                    continue
                raise
            self._first = at
            return int(status), str(text)
        raise AssertionError("a cluster has at least one host")


def _parsed(text: str) -> Any:
    try:
        return json.loads(text) if text else None
    except ValueError:
        return None
