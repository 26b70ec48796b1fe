"""One server: its connections, and the one way to talk to it.

A pipeline is sent at once and answered in order over one connection, which nobody else uses meanwhile. A connection on
which an answer may still be under way (a deadline passed, the caller was cancelled) is closed: its answers would be
taken for those of the next call.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import AuthenticationError, BusyLoadingError

from datalayer.errors import Closed, DatalayerError, OutcomeUnknown
from datalayer.stores.redis import faults
from datalayer.stores.redis.scripts import pack

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datalayer.stores.redis.scripts import Argument
    from datalayer.stores.redis.target import Address, Line, Target, TlsLine

COMMANDS_MAX: Final = 1000
"""Of one pipeline: what a server answers it keeps in memory until it is read."""
WAIT_GRAIN_S: Final = 0.2
"""A server looks at its timers ten times a second."""
_ANNOUNCED: Final = "set cluster-announce-ip and cluster-announce-port on that server to an address that clients reach"


class Node:
    """One server of a target."""

    def __init__(self, address: Address, target: Target, name: str) -> None:
        self.address: Final = address
        self.where: Final = f"backend {name} (redis at {address})"
        self._target = target
        self._free: list[Line | TlsLine] = []
        self._reached = False
        self._closed = False

    async def exchange(
        self, commands: Sequence[Sequence[Argument] | bytes], timeout_s: float, *, write: bool, confirm: int = 0
    ) -> list[Any]:
        """The answers to a pipeline; an answer may be an error of the driver, which is returned in its place.

        ``confirm``: so many replicas must have taken the writes before it returns. Raises Unavailable or
        DeadlineExceeded (nothing was sent, or a read), OutcomeUnknown, PreconditionFailed.
        """
        answers: list[Any] = []
        deadline_at = asyncio.get_running_loop().time() + timeout_s
        for at in range(0, len(commands), COMMANDS_MAX):
            try:
                answers += await self._pipeline(
                    commands[at : at + COMMANDS_MAX], deadline_at, write=write, confirm=confirm
                )
            except DatalayerError as error:
                if write and at and not isinstance(error, OutcomeUnknown):
                    msg = f"{self.where} took a part of the writes only: {error.message}"
                    raise OutcomeUnknown(msg) from error
                raise
        return answers

    async def _pipeline(
        self, commands: Sequence[Sequence[Argument] | bytes], deadline_at: float, *, write: bool, confirm: int
    ) -> list[Any]:
        if self._closed:
            raise Closed(f"{self.where} is not open")
        line = self._free.pop() if self._free else self._target.line(self.address)
        sent, whole = False, False
        try:
            async with asyncio.timeout_at(deadline_at):
                if not line.usable():
                    await line.disconnect(nowait=True)
                    await line.connect()  # type: ignore[no-untyped-call]
                    self._reached = True
                wait = _wait(deadline_at, confirm) if write and confirm else ()
                packed = b"".join([one if isinstance(one, bytes) else pack(one) for one in (*commands, *wait)])
                sent = True
                await line.send_packed_command(packed, check_health=False)
                answers = await line.answers(len(commands) + len(wait))
            whole = not self._closed
        except TimeoutError:
            raise faults.late(self.where, sent=sent, write=write) from None
        except AuthenticationError as error:
            failure = faults.refused(error, self.where)
        except BusyLoadingError as error:
            if len(commands) == 1 or not write:
                raise faults.refused(error, self.where) from error
            raise faults.broken(error, self.where, write=write) from error
        except faults.CAUGHT as error:
            failure = faults.broken(error, self.where, write=write) if sent else self._unreached(error)
        else:
            if wait:
                self._check_confirmed(answers.pop(), confirm)
            return answers
        finally:
            if whole:
                self._free.append(line)
            else:
                await line.disconnect(nowait=True)
        # Outside the block: a refused login must not travel as the context either.
        raise failure

    def _unreached(self, error: BaseException) -> DatalayerError:
        failure = faults.unreached(error, self.where)
        if self._target.cluster and not self._reached and self.address not in self._target.seeds:
            failure.message = f"{failure.message}; it is an address that the cluster announces"
            failure.hint = failure.hint or _ANNOUNCED
        return failure

    def _check_confirmed(self, answer: object, confirm: int) -> None:
        if not isinstance(answer, int) or answer < confirm:
            taken = answer if isinstance(answer, int) else 0
            raise OutcomeUnknown(f"{self.where}: {taken} of {confirm} replicas confirmed the write in time")

    async def close(self) -> None:
        """Close the connections; those in use are closed when their call ends."""
        self._closed = True
        lines, self._free = self._free, []
        for line in lines:
            await line.disconnect(nowait=True)


def _wait(deadline_at: float, replicas: int) -> tuple[tuple[Argument, ...], ...]:
    """WAIT ends before the caller's deadline, so that the answer tells how many replicas there were."""
    left_s = deadline_at - asyncio.get_running_loop().time()
    return (("WAIT", replicas, max(1, int((left_s - WAIT_GRAIN_S) * 1000))),)
