"""Finds the server of a key, sends to several at once, and follows a cluster's redirections.

The driver's cluster client is not used: it repeats on its own what it does not know the outcome of, and cannot send
WAIT behind a write on the write's connection (docs/adr/0020). A redirection is no repeat: the server has done nothing.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from redis.crc import key_slot
from redis.exceptions import AskError, MovedError, NoScriptError, RedisError, ResponseError, TryAgainError

from datalayer.errors import (
    Closed,
    DatalayerError,
    DeadlineExceeded,
    OutcomeUnknown,
    PreconditionFailed,
    Unavailable,
)
from datalayer.stores.redis import faults
from datalayer.stores.redis.node import Node
from datalayer.stores.redis.scripts import Call, command
from datalayer.stores.redis.target import Address

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from datalayer.clock import Clock, Deadline
    from datalayer.stores.redis.target import Target

REQUEST_TIMEOUT_S: Final = 10.0
"""For calls that carry no deadline."""
LEARN_TIMEOUT_S: Final = 1.0
REDIRECTIONS_MAX: Final = 8
TRY_AGAIN_S: Final = 0.02
CLUSTER_SLOTS: Final = 16384
LEARN: Final = Call(("CLUSTER", "SLOTS"), None)


class RedisSession:
    """Connections to one server or to the primaries of a cluster. Made and used on one event loop."""

    def __init__(self, name: str, target: Target, clock: Clock, *, in_flight_max: int) -> None:
        self.target: Final = target
        self.where: Final = f"backend {name} (redis at {target.contact})"
        self._name = name
        self._clock = clock
        self._room = asyncio.Semaphore(in_flight_max)
        self._nodes: dict[Address, Node] = {}
        self._owners: list[Address | None] = []
        self._map_number = 0
        self._stale = True
        self._learning = asyncio.Lock()
        self._open = False

    async def open(self) -> None:
        """Connect. Raises Unavailable when nothing answers, PreconditionFailed when the login is refused."""
        self._open = True
        if self.target.cluster:
            await self._learn(self._map_number, REQUEST_TIMEOUT_S)
            await self._reach_one()
        else:
            await self.run(command("PING"), write=False)

    async def close(self) -> None:
        """Close every connection. Idempotent."""
        self._open = False
        nodes, self._nodes = list(self._nodes.values()), {}
        for node in nodes:
            await node.close()

    async def run(self, call: Call, *, write: bool, deadline: Deadline | None = None) -> Any:
        """The answer to one command.

        Raises DeadlineExceeded (a read, or not sent), Unavailable, Overloaded, PreconditionFailed, Refused (the server
        said no); OutcomeUnknown for a write that was sent and not confirmed.
        """
        return (await self.batch((call,), write=write, deadline=deadline))[0]

    async def batch(
        self, calls: Sequence[Call], *, write: bool, deadline: Deadline | None = None, to: Address | None = None
    ) -> list[Any]:
        """The answers to commands, in their order: one pipeline for each server, all at once. No transaction.

        ``to``: the server that all keys are of, where the caller knows it; it says so itself where it is not.

        The order in which they are done is theirs as long as none must be sent again: a script that the server does not
        know yet, or a command for another server, is done after those behind it.

        Raises as ``run`` does, for the first that failed; what was sent to other servers may have been done.
        """
        if to is None and not self.target.cluster:
            to = self._owner(None)
        answers: list[Any] = [None] * len(calls)
        waiting: dict[int, Call] = {}
        asking: dict[int, Address] = {}
        for number in range(REDIRECTIONS_MAX):
            if self.target.cluster and self._stale:
                await self._learn(self._map_number, self._left_s(deadline))
            if number or to is None:
                await self._send(waiting or dict(enumerate(calls)), asking, answers, write=write, deadline=deadline)
            else:
                sent = [call.packed or call.arguments for call in calls]
                answers = await self._exchange(to, sent, self._left_s(deadline), write=write)
            if not any(isinstance(answer, RedisError) for answer in answers):
                return answers
            waiting, asking = await self._redirected(waiting or dict(enumerate(calls)), answers)
            if not waiting:
                break
        for answer in answers:
            if isinstance(answer, RedisError):
                raise faults.refused(answer, self.where) from answer
        return answers

    async def of_primaries(self, call: Call) -> dict[Address, Any]:
        """The answer of each primary that can be reached to a read. Unavailable when none answers."""
        owners = self.primaries()
        sent = (self._exchange(one, [call.arguments], REQUEST_TIMEOUT_S, write=False) for one in owners)
        answers = await asyncio.gather(*sent, return_exceptions=True)
        found: dict[Address, Any] = {}
        failed: list[BaseException] = []
        for address, answer in zip(owners, answers, strict=True):
            if isinstance(answer, BaseException):
                failed.append(answer)
            elif isinstance(answer[0], RedisError):
                raise faults.refused(answer[0], self._node(address).where) from answer[0]
            else:
                found[address] = answer[0]
        if failed and (not found or not isinstance(failed[0], Unavailable)):
            raise failed[0]
        return found

    async def parted(self, calls: Sequence[Call], *, deadline: Deadline | None = None) -> list[Any]:
        """The answers to reads, in their order; an error in the place of each whose server did not answer."""
        answers: list[Any] = [None] * len(calls)
        groups: dict[Address, list[int]] = {}
        for number, call in enumerate(calls):
            try:
                if self.target.cluster and self._stale:
                    await self._learn(self._map_number, self._left_s(deadline))
                groups.setdefault(self._owner(call.key), []).append(number)
            except Unavailable as error:
                answers[number] = error

        async def ask(numbers: list[int]) -> None:
            try:
                found = await self.batch([calls[number] for number in numbers], write=False, deadline=deadline)
            except DatalayerError as error:
                found = [error] * len(numbers)
            for number, answer in zip(numbers, found, strict=True):
                answers[number] = answer

        await asyncio.gather(*(ask(numbers) for numbers in groups.values()))
        return answers

    async def at(self, address: Address, call: Call) -> Any:
        """The answer of one server to a read."""
        (answer,) = await self._exchange(address, [call.arguments], REQUEST_TIMEOUT_S, write=False)
        if isinstance(answer, RedisError):
            raise faults.refused(answer, self.where) from answer
        return answer

    def known_server(self, key: bytes) -> Address | None:
        """The server that takes writes of a key, as last learnt; None where it must be asked for (``server_of``)."""
        return None if self.target.cluster and self._stale else self._owner(key)

    async def server_of(self, key: bytes | None, deadline: Deadline) -> Address:
        """The server that takes writes of a key; Unavailable where nobody does."""
        if self.target.cluster and self._stale:
            await self._learn(self._map_number, self._left_s(deadline))
        return self._owner(key)

    async def everywhere(self, calls: Sequence[Call], deadline: Deadline) -> dict[Address, list[Any]]:
        """The answers of every primary to reads, one pipeline each.

        Raises where one of them does not answer, or a slot of the cluster has no primary.
        """
        addresses = await self.whole(deadline)
        sent, left_s = [one.arguments for one in calls], self._left_s(deadline)
        asked = (self._exchange(one, sent, left_s, write=False) for one in addresses)
        answers: dict[Address, list[Any]] = {}
        for address, found in zip(addresses, await asyncio.gather(*asked, return_exceptions=True), strict=True):
            if isinstance(found, BaseException):
                raise found
            for answer in found:
                if isinstance(answer, RedisError):
                    raise faults.refused(answer, self._node(address).where) from answer
            answers[address] = found
        return answers

    async def whole(self, deadline: Deadline | None = None) -> list[Address]:
        """The servers that take writes, which hold every slot between them; Unavailable while one slot has none."""
        if self.target.cluster and self._stale:
            await self._learn(self._map_number, self._left_s(deadline))
        return sorted(set(self.owners()))

    async def learn_again(self, deadline: Deadline) -> None:
        """Ask a cluster anew who holds which slot."""
        await self._learn(self._map_number, self._left_s(deadline))

    def owners(self) -> list[Address]:
        """The primary of each slot, as last learnt; Unavailable while one of them has none."""
        if not self.target.cluster:
            return [self.target.seeds[0]]
        owners = [one for one in self._owners if one is not None]
        if len(owners) < CLUSTER_SLOTS:
            self._stale = True
            missing = CLUSTER_SLOTS - len(owners)
            raise Unavailable(f"{self.where}: no server holds {missing} of the {CLUSTER_SLOTS} slots of the cluster")
        return owners

    def primaries(self) -> list[Address]:
        """The servers that take writes, as last learnt; slots that nobody holds are passed over."""
        if not self.target.cluster:
            return [self.target.seeds[0]]
        return sorted({one for one in self._owners if one is not None})

    # --- one round ---

    async def _send(
        self,
        waiting: dict[int, Call],
        asking: dict[int, Address],
        answers: list[Any],
        *,
        write: bool,
        deadline: Deadline | None,
    ) -> None:
        groups: dict[Address, list[int]] = {}
        for number, call in waiting.items():
            groups.setdefault(asking.get(number) or self._owner(call.key), []).append(number)

        async def send(address: Address, numbers: list[int]) -> None:
            sent: list[Sequence[Any] | bytes] = []
            # Pairs first: a long pipeline is cut at an even place.
            numbers = sorted(numbers, key=lambda number: number not in asking)
            for number in numbers:
                if number in asking:
                    sent.append(("ASKING",))
                sent.append(waiting[number].packed or waiting[number].arguments)
            got = iter(await self._exchange(address, sent, self._left_s(deadline), write=write))
            for number in numbers:
                if number in asking:
                    next(got)
                answers[number] = next(got)

        if len(groups) == 1:
            await send(*next(iter(groups.items())))
            return
        ended = await asyncio.gather(*(send(*one) for one in groups.items()), return_exceptions=True)
        failures = [one for one in ended if isinstance(one, BaseException)]
        if not failures:
            return
        # A write that one server took and another did not is told by the worst of both.
        failures.sort(key=lambda one: not isinstance(one, OutcomeUnknown))
        if write and len(failures) < len(groups) and isinstance(failures[0], Unavailable):
            msg = f"a part of the write did not happen: {failures[0].message}"
            raise OutcomeUnknown(msg) from failures[0]
        raise failures[0]

    async def _exchange(
        self, address: Address, commands: Sequence[Sequence[Any] | bytes], timeout_s: float, *, write: bool
    ) -> list[Any]:
        loop = asyncio.get_running_loop()
        deadline_at = loop.time() + timeout_s
        if self._room.locked():
            try:
                async with asyncio.timeout_at(deadline_at):
                    await self._room.acquire()
            except TimeoutError:
                raise DeadlineExceeded(f"{self.where}: all connections were busy until the deadline") from None
        else:
            await self._room.acquire()  # at once: nothing to set a timer for
        try:
            left_s = deadline_at - loop.time()
            return await self._node(address).exchange(
                commands, left_s, write=write, confirm=self.target.wait_replicas if write else 0
            )
        except (Unavailable, OutcomeUnknown):
            self._stale = True
            raise
        finally:
            self._room.release()

    async def _redirected(
        self, waiting: dict[int, Call], answers: list[Any]
    ) -> tuple[dict[int, Call], dict[int, Address]]:
        """What must be sent again, elsewhere or whole, because the server has done nothing with it."""
        again: dict[int, Call] = {}
        asking: dict[int, Address] = {}
        pause = False
        for number, call in waiting.items():
            answer = answers[number]
            if not isinstance(answer, ResponseError):
                continue
            if isinstance(answer, NoScriptError) and call.script is not None:
                again[number] = call.whole()
            elif not self.target.cluster:
                continue
            elif isinstance(answer, MovedError):
                # before AskError, which it is a kind of
                self._moved(answer)
                again[number] = call
            elif isinstance(answer, AskError):
                again[number] = call
                asking[number] = Address(str(answer.host), int(answer.port))
            elif isinstance(answer, TryAgainError):
                again[number] = call
                pause = True
        if pause:
            await asyncio.sleep(TRY_AGAIN_S)
        return again, asking

    # --- which server ---

    def _owner(self, key: bytes | None) -> Address:
        if not self._open:
            raise Closed(f"{self.where} is not open")
        if not self.target.cluster:
            return self.target.seeds[0]
        if key is None:
            return self.primaries()[0]
        owner = self._owners[key_slot(key)]
        if owner is None:
            self._stale = True
            raise Unavailable(f"{self.where}: no server holds slot {key_slot(key)} of the cluster")
        return owner

    def _node(self, address: Address) -> Node:
        found = self._nodes.get(address)
        if found is None:
            if not self._open:
                raise Closed(f"{self.where} is not open")
            found = self._nodes[address] = Node(address, self.target, self._name)
        return found

    def _moved(self, answer: MovedError) -> None:
        if self._owners:
            self._owners[answer.slot_id] = Address(str(answer.host), int(answer.port))
        self._stale = self._stale or not answer.host

    async def _learn(self, seen: int, timeout_s: float) -> None:
        """Ask who holds which slot: the known primaries, then the seeds, until one answers."""
        async with self._learning:
            if self._map_number != seen:
                return
            failure: DatalayerError | None = None
            for address in dict.fromkeys((*self.primaries(), *self.target.seeds)):
                try:
                    (reply,) = await self._node(address).exchange(
                        [LEARN.arguments], min(timeout_s, LEARN_TIMEOUT_S), write=False
                    )
                except Unavailable as error:
                    failure = failure or error
                    continue
                if isinstance(reply, RedisError):
                    raise self._no_cluster(reply) from reply
                self._owners = slot_owners(reply, address)
                self._map_number += 1
                self._stale = False
                return
            assert failure is not None, "a target has a seed"
            raise failure

    def _no_cluster(self, reply: RedisError) -> DatalayerError:
        if "cluster support disabled" in str(reply):
            return PreconditionFailed(f"{self.where} is no cluster", hint="write redis:// instead of redis+cluster://")
        return faults.refused(reply, self.where)

    async def _reach_one(self) -> None:
        """At least one of the addresses that the cluster announces can be reached; the others may be down."""
        await self.of_primaries(command("PING"))

    def _left_s(self, deadline: Deadline | None) -> float:
        if deadline is None:
            return REQUEST_TIMEOUT_S
        left_s = deadline.remaining()
        if left_s <= 0:
            raise DeadlineExceeded
        return left_s


def slot_owners(reply: Iterable[Any], asked: Address) -> list[Address | None]:
    """The primary of each slot, as CLUSTER SLOTS tells; a node that names itself by no host is the one asked."""
    owners: list[Address | None] = [None] * CLUSTER_SLOTS
    for first, last, primary, *_ in reply:
        host = (primary[0] or b"").decode()
        address = Address(asked.host if host in {"", "?"} else host, int(primary[1]))
        owners[first : last + 1] = [address] * (last - first + 1)
    return owners
