"""Actors of the explorer of claims: the real code, run from answer to answer and made again from its answers.

An actor has a loop of its own on which it runs until everything it has under way waits for an answer. The same answers
make the same actor, so a ``Node`` is known by them.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from datalayer.clock import Deadline
from datalayer.domains.record import Key, Record
from datalayer.domains.users import Swap, UserMutation, to_record
from datalayer.errors import (
    AlreadyExists,
    Conflict,
    DatalayerError,
    Fenced,
    Outcome,
    OutcomeUnknown,
    StaleRoute,
    Unavailable,
)
from datalayer.routing.claims import GRACE_US, ClaimingWriter

YOUNG = 1_764_000_000_000_000
OLD = YOUNG + 2 * GRACE_US
STEPS_MAX = 400
"""Of one actor: a change that needs more does not end."""


@dataclass(frozen=True)
class Actor:
    """One process with one client, who runs its mutations in turn."""

    mutations: tuple[UserMutation, ...] = ()
    now_us: int = YOUNG
    tries: int = 1
    """How often the client runs a mutation whose error is retryable."""
    goes_on: bool = False
    """Whether it goes on after one that failed."""
    sweeps: bool = False
    in_one_database: bool = False
    """Its mutations are transactions: what a sweep meets when a sharded place has become one database."""


class End(NamedTuple):
    """How one try of a mutation ended: "done", or the error's class and field."""

    mutation: UserMutation
    word: str
    outcome: Outcome
    records: tuple[Record, ...] = ()
    user: Record | None = None


Ends = tuple[tuple[End, ...], ...]


def word_of(error: DatalayerError) -> str:
    """An error as an ``End`` tells it."""
    return type(error).__name__ + (f" {error.field}" if isinstance(error, AlreadyExists) else "")


class Breach(AssertionError):
    """A schedule that breaks a promise."""

    def __init__(self, what: str, trace: Sequence[str] = ()) -> None:
        self.what = what
        self.trace = tuple(trace)
        super().__init__("\n  ".join([what, *trace]))


class Loop(asyncio.AbstractEventLoop):
    """Only what tasks and gather need: no time, no I/O."""

    def __init__(self) -> None:
        self._ready: deque[asyncio.Handle] = deque()

    def call_soon(  # type: ignore[override]
        self, callback: Any, *args: Any, context: Any = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def create_task(self, coro: Any, **named: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(coro, loop=self)
        # A crashed process leaves its tasks as they stand.
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        return task

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def get_debug(self) -> bool:
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """An answer to a process that has crashed is nobody's."""

    def run(self) -> None:
        """Until everybody waits for an answer."""
        asyncio._set_running_loop(self)
        try:
            while self._ready:
                self._ready.popleft()._run()
        finally:
            asyncio._set_running_loop(None)


class Still:
    """A clock that stands."""

    def __init__(self, now_us: int) -> None:
        self._now_us = now_us

    def now_us(self) -> int:
        return self._now_us

    def monotonic(self) -> float:
        return 0.0

    boottime = monotonic


class Request(NamedTuple):
    """A read (of all claims: no keys), a swap or a whole transaction."""

    keys: tuple[Key, ...] = ()
    swap: Swap | None = None
    whole: UserMutation | None = None


class Answer(NamedTuple):
    """What a request was answered: records, or the name of an error."""

    word: str
    records: tuple[Record, ...] = ()
    version: int = 0
    told: str = ""
    """The refusal of a whole transaction."""

    def error(self) -> DatalayerError:
        match self.word:
            case "conflict":
                return Conflict("another version", current_version=self.version)
            case "unknown":
                return OutcomeUnknown()
            case "fenced":
                return Fenced()
            case _:
                return Unavailable()


class Process:
    """An actor's code, running."""

    def __init__(self, actor: Actor, writer: type[ClaimingWriter], *, torn: bool) -> None:
        self._loop = Loop()  # type: ignore[abstract]
        self._actor = actor
        self._torn = torn
        self.asked = 0
        self.under_way: dict[int, tuple[Request, asyncio.Future[Answer]]] = {}
        self.ends: list[End] = []
        self.began: int | None = None
        """Which attempt at a mutation has just begun."""
        self._attempts = 0
        clock = Still(actor.now_us)
        self._writer = self._watched(writer)(self, clock)
        self._deadline = Deadline(clock, 5.0)
        self.task = self._loop.create_task(self._sweep() if actor.sweeps else self._work())
        self._loop.run()

    def _watched(self, writer: type[ClaimingWriter]) -> type[ClaimingWriter]:
        process = self

        class Watched(writer):  # type: ignore[misc,valid-type]
            async def _once(self, mutation: UserMutation, deadline: Deadline) -> Any:
                process._attempts += 1
                process.began = process._attempts
                return await super()._once(mutation, deadline)

        return Watched

    def answer(self, number: int, answer: Answer) -> None:
        self.began = None
        self.under_way.pop(number)[1].set_result(answer)
        self._loop.run()

    async def _ask(self, request: Request) -> Answer:
        future: asyncio.Future[Answer] = self._loop.create_future()
        self.under_way[self.asked] = (request, future)
        self.asked += 1
        answer = await future
        if answer.word != "ok":
            raise answer.error()
        return answer

    async def read(self, keys: Sequence[Key], deadline: Deadline) -> dict[Key, Record]:
        if not keys:
            return {}
        if self._torn:
            parts = await asyncio.gather(*(self._ask(Request((key,))) for key in keys))
        else:
            parts = [await self._ask(Request(tuple(keys)))]
        return {record.ident: record for part in parts for record in part.records}

    async def swap(self, swap: Swap, deadline: Deadline) -> Record:
        await self._ask(Request(swap=swap))
        return swap.record

    async def _work(self) -> None:
        for mutation in self._actor.mutations:
            left = self._actor.tries
            while left and not await self._try(mutation):
                if not self.ends[-1].word.startswith(("Fenced", "StaleRoute")):
                    left -= 1 if self.ends[-1].word in {"OutcomeUnknown", "Unavailable"} else left
            if self.ends[-1].word != "done" and not self._actor.goes_on:
                return

    async def _try(self, mutation: UserMutation) -> bool:
        self._attempts = 0
        if self._actor.in_one_database:
            whole = await self._ask(Request(whole=mutation))
            outcome = Outcome.NOT_APPLIED if whole.told else Outcome.APPLIED
            self.ends.append(End(mutation, whole.told or "done", outcome, whole.records))
            return not whole.told
        try:
            done = await self._writer.execute(mutation, self._deadline)
        except DatalayerError as error:
            self.ends.append(End(mutation, word_of(error), error.outcome))
            return False
        user = to_record(done.entity)
        self.ends.append(End(mutation, "done", Outcome.APPLIED, tuple(done.records), user))
        return True

    async def _sweep(self) -> None:
        try:
            for claim in (await self._ask(Request())).records:
                await self._writer.sweep(claim, self._deadline)
        except (Fenced, StaleRoute, Unavailable, OutcomeUnknown):
            return  # an operator runs it again


class Node:
    """An actor after a run of answers."""

    __slots__ = ("_children", "_code", "_live", "_path", "ended", "ends", "number", "requests")

    def __init__(self, code: "Code", path: tuple[tuple[int, Answer], ...], live: Process) -> None:
        self._code = code
        self._path = path
        self._live: Process | None = live
        self._children: dict[tuple[int, Answer], Node] = {}
        self.number = code.count
        code.count += 1
        self.requests = tuple((number, request) for number, (request, _) in live.under_way.items())
        self.ends = tuple(live.ends)
        self.ended = live.task.done()
        if self.ended:
            live.task.result()
        assert self.ended or self.requests, "an actor waits for nothing"

    def after(self, number: int, answer: Answer) -> "Node":
        """The actor after one more answer."""
        child = self._children.get((number, answer))
        if child is None:
            if len(self._path) >= STEPS_MAX:
                raise Breach("an operation does not end")
            live, self._live = self._live, None
            if live is None:
                live = self._code.start()
                for past in self._path:
                    live.answer(*past)
            live.answer(number, answer)
            child = self._code.begun.get((live.began, tuple(live.ends))) if live.began else None
            if child is None:
                child = Node(self._code, (*self._path, (number, answer)), live)
                if live.began:
                    self._code.begun[live.began, child.ends] = child
            self._children[number, answer] = child
        return child


class Code:
    """An actor's tree of nodes."""

    def __init__(self, actor: Actor, writer: type[ClaimingWriter], *, torn: bool) -> None:
        self._made = (actor, writer, torn)
        self.count = 0
        self.begun: dict[tuple[int, tuple[End, ...]], Node] = {}
        self.root = Node(self, (), self.start())

    def start(self) -> Process:
        actor, writer, torn = self._made
        return Process(actor, writer, torn=torn)
