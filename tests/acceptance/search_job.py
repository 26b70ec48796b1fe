"""Search kept in step, as a scenario on a real Postgres and a real OpenSearch:

1. random creates, edits and deletes, every one of their documents delivered to the index twice more in any order, while
   processes that index and the server of the index are killed: at the end the index equals the store;
2. how long a message takes from its acknowledgement until a query finds it, at so many writes a second;
3. a rebuild meanwhile, whose command is killed on its way: no query sees fewer hits than it should.

    python -m tests.acceptance.search_job [--operations 20000] [--rate 500] [--seconds 30]

prints what happened; any broken promise ends it with an error.
"""

import argparse
import asyncio
import os
import random
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID, uuid4

from datalayer.clock import SystemClock
from datalayer.domains.messages import to_record
from datalayer.domains.record import Record
from datalayer.errors import DatalayerError, OutcomeUnknown, Unavailable
from datalayer.layer import DataLayer, LayerOptions
from datalayer.routing.documents import documents_of
from datalayer.settings import load_settings
from tests.acceptance.fleet import configuration
from tests.acceptance.kept import working_folder
from tests.integration.live import create_schemas
from tests.servers import Servers
from tests.servers.interface import Server
from tests.unit.index_world import differences

AT_ONCE = 16
IN_FLIGHT = 32
SAMPLE_EVERY = 50
LOOK_S = 0.05
"""Between two looks for a sample, which is told up to so much too late: looks cost the processor that is measured."""
SETTLE_S = 120.0
STABLE = 200
WINDOW = 400
SLOW_S = 5.0
"""What was acknowledged longer ago must be found, whatever goes on."""
REBUILD_KILLS = ("backfill.page=kill", "verify.page=kill", "publish_other.before=kill")


@dataclass(frozen=True, slots=True)
class Job:
    """How large the scenario is."""

    operations: int = 20_000
    rate: float = 500.0
    seconds: float = 30.0
    outage_s: float = 6.0
    p99_s: float = 1.0


@dataclass
class Scenario:
    """One run: the layer that writes and queries, and the processes that index."""

    job: Job
    config: Path
    layer: DataLayer
    index_server: Server
    workers: list[Process] = field(default_factory=list)
    rooms: list[UUID] = field(default_factory=lambda: [uuid4() for _ in range(20)])
    kills: int = 0
    began: float = field(default_factory=time.monotonic)
    acked: dict[UUID, float] = field(default_factory=dict)
    """Messages of the present room that grows, and when each was acknowledged."""

    def tell(self, text: str) -> None:
        """One line of the scenario's log."""
        print(f"{time.monotonic() - self.began:7.1f} s  {text}", flush=True)

    # --- processes ----------------------------------------------------------------------------------------------------

    async def start_worker(self) -> None:
        """One more process that indexes."""
        words = (sys.executable, "-m", "tests.acceptance.search_worker", str(self.config))
        worker = await asyncio.create_subprocess_exec(*words, stdout=PIPE)
        assert worker.stdout is not None
        assert await worker.stdout.readline() == b"open\n", "the worker could not be opened"
        self.workers.append(worker)

    async def kill_worker(self) -> None:
        """SIGKILL of the process that holds the lease, or of any; another takes its place."""
        holder = await self.layer.control.holder(f"indexer/{self.layer.places.routing_of('search').authority.attempt}")
        known = {str(one.pid): one.id for one in await self.layer.control.processes()}
        victim = next((w for w in self.workers if holder and known.get(str(w.pid)) == holder[0]), self.workers[0])
        self.workers.remove(victim)
        victim.kill()
        await victim.wait()
        self.kills += 1
        await self.start_worker()

    async def outage(self) -> None:
        """SIGKILL of the index's server, and its restart."""
        await asyncio.to_thread(self.index_server.kill9)
        self.tell("SIGKILL of OpenSearch")
        await asyncio.sleep(self.job.outage_s)
        await asyncio.to_thread(self.index_server.start)
        self.tell("OpenSearch is back")

    async def command(self, *words: str, failpoints: str = "") -> None:
        """Run ``datalayer WORDS`` to its end, or with failpoints to its death."""
        env = {**os.environ, "DATALAYER_FAILPOINTS": failpoints}
        module = "datalayer.cli.demo.staged" if failpoints else "datalayer.cli"
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            module,
            *words,
            "--config",
            str(self.config),
            env=env,
            stderr=PIPE,
            stdout=PIPE,
        )
        out, errors = await process.communicate()
        code = process.returncode or 0
        if code != (-9 if failpoints else 0):
            raise AssertionError(f"{words} -> {code}: {out.decode()[-500:]} {errors.decode()[-800:]}")

    # --- 1: everything, in any order, twice ---------------------------------------------------------------------------

    async def shuffle(self) -> None:
        """The random operations under kills; then the full comparison."""
        chance, records = random.Random(1), list[Record]()
        disasters = asyncio.create_task(self._disasters())
        living: list[tuple[UUID, UUID]] = []
        sender, began = uuid4(), time.monotonic()
        for at in range(0, self.job.operations, AT_ONCE):
            chance.shuffle(living)
            batch = [self._operation(chance, living, sender, at + n) for n in range(AT_ONCE)]
            for record in await asyncio.gather(*batch):
                records.append(record)
                if not record.deleted:
                    living.append((UUID(bytes=record.key[:16]), UUID(bytes=record.key[16:])))
            if at % (AT_ONCE * 16) == 0:
                await self._deliver(chance.sample(records, min(len(records), 200)))
        seconds = time.monotonic() - began
        self.tell(f"{len(records)} operations in {seconds:.1f} s ({len(records) / seconds:.0f} a second)")
        await disasters
        for _ in range(2):
            chance.shuffle(records)
            for at in range(0, len(records), 500):
                await self._deliver(records[at : at + 500])
        self.tell(f"{2 * len(records)} documents delivered again, shuffled, twice")
        await self.in_step()

    async def _operation(
        self, chance: random.Random, living: list[tuple[UUID, UUID]], sender: UUID, number: int
    ) -> Record:
        draw = chance.random()
        if draw < 0.5 or not living:
            made = await self.layer.messages.append(chance.choice(self.rooms), sender_id=sender, body=f"made{number}")
            return to_record(made)
        room, id = living.pop()
        if draw < 0.8:
            return to_record(await self.layer.messages.edit(room, id, body=f"edited{number}"))
        await self.layer.messages.delete(room, id)
        gone = await self.layer.messages.get(room, id, include_deleted=True)
        assert gone is not None
        return to_record(gone)

    async def _deliver(self, records: list[Record]) -> None:
        """What comes late and twice: straight to the index, while it is there."""
        index = self.layer.places.store("search", self.layer.places.routing_of("search").authority)
        while True:
            try:
                await index.apply(documents_of(records))
            except (Unavailable, OutcomeUnknown):
                await asyncio.sleep(0.3)
            else:
                return

    async def _disasters(self) -> None:
        for _ in range(2):
            await self.kill_worker()
            await self.outage()
            await self.kill_worker()
        self.tell(f"{self.kills} processes that index were killed")

    async def in_step(self) -> None:
        """Wait until the full comparison finds nothing; AssertionError naming what differs."""
        began = time.monotonic()
        while True:
            try:
                left = await differences(self.layer.places)
            except DatalayerError as error:
                self.tell(f"not compared yet: {error.message}")
                left = {}
                await asyncio.sleep(0.3)
                continue
            if not left:
                break
            assert time.monotonic() - began < SETTLE_S, (
                f"{len(left)} documents differ, first {next(iter(left.items()))}"
            )
            await asyncio.sleep(0.3)
        self.tell(f"index equals store by full comparison, {time.monotonic() - began:.1f} s after the last write")

    # --- 2: how far it is behind --------------------------------------------------------------------------------------

    async def measure(self, label: str, until: asyncio.Event | None = None) -> list[float]:
        """Write at the rate; the seconds from the acknowledgement of each sampled message until a query finds it.

        For the job's seconds; with ``until`` as long as that is not set.
        """
        room, sender, lags, waiting = uuid4(), uuid4(), list[float](), list[asyncio.Task[None]]()
        self.acked = {}
        began, written = time.monotonic(), 0

        async def write(number: int) -> None:
            word = f"sample{uuid4().hex}"
            message = await self.layer.messages.append(room, sender_id=sender, body=f"growing {word}")
            at = time.monotonic()
            self.acked[message.id] = at
            if number % SAMPLE_EVERY == 0:
                waiting.append(asyncio.create_task(self._until_found(room, word, at, lags)))

        writes: set[asyncio.Task[None]] = set()
        checker = asyncio.create_task(self._never_fewer(room))
        while (elapsed := time.monotonic() - began) < self.job.seconds or (until is not None and not until.is_set()):
            while written < elapsed * self.job.rate and len(writes) < IN_FLIGHT:
                task = asyncio.create_task(write(written))
                writes.add(task)
                task.add_done_callback(writes.discard)
                written += 1
            await asyncio.sleep(0.002)
        await asyncio.gather(*writes)
        rate = written / (time.monotonic() - began)
        await asyncio.gather(*waiting)
        checker.cancel()
        queries = await checker
        lags.sort()
        shown = ", ".join(f"p{p} {lags[min(len(lags) - 1, int(len(lags) * p / 100))]:.3f} s" for p in (50, 90, 99))
        self.tell(
            f"{label}: {rate:.0f} writes/s, {len(lags)} samples from acknowledged to found: {shown}, "
            f"most {lags[-1]:.3f} s; {queries} queries, none saw fewer hits than it should"
        )
        return lags

    async def _until_found(self, room: UUID, word: str, at: float, lags: list[float]) -> None:
        while not (await self.layer.search.messages(word, conversations=[room])).items:
            assert time.monotonic() - at < SETTLE_S, f"{word} is not found"
            await asyncio.sleep(LOOK_S)
        lags.append(time.monotonic() - at)

    async def _never_fewer(self, room: UUID) -> int:
        """Query all the time until it is cancelled: what has always been there, and what was acknowledged a while ago."""
        queries = 0
        try:
            while True:
                hits = await self.layer.search.messages("stable", conversations=[self.rooms[0]], limit=1000)
                assert len(hits.items) == STABLE, f"{len(hits.items)} of {STABLE} that were always there"
                old = time.monotonic() - SLOW_S
                due = {id for id, at in self.acked.items() if at < old}
                found = await self.layer.search.messages("growing", conversations=[room], limit=WINDOW)
                ids = {hit.message.id for hit in found.items}
                whole = len(ids) < WINDOW  # else the newest of all: what is older than the oldest of them is not shown
                missing = {id for id in due - ids if whole or id > min(ids)}
                assert not missing, f"{len(missing)} of {len(due)} are not found {SLOW_S} s after their writes"
                queries += 2
                await asyncio.sleep(0.2)
        except asyncio.CancelledError:
            return queries

    # --- 3: a rebuild meanwhile -----------------------------------------------------------------------------------------

    async def rebuild(self) -> None:
        """Killed on its way, then to its end; writes and queries go on all the time."""
        over = asyncio.Event()
        measuring = asyncio.create_task(self.measure("during a rebuild", over))
        await asyncio.sleep(self.job.seconds / 10)
        for failpoint in REBUILD_KILLS:
            await self.command("search", "rebuild", "--yes", failpoints=failpoint)
            self.tell(f"the rebuild died: {failpoint}")
        await self.command("search", "rebuild", "--yes")
        routing = (await self.layer.control.routings())[1]["search"]
        self.tell(f"rebuilt: attempt {routing.authority.attempt}, phase {routing.phase}")
        assert routing.authority.attempt == 1
        over.set()
        await measuring
        await self.command("migrations", "purge", "--yes")
        await self.in_step()


@asynccontextmanager
async def opened(servers: Servers, folder: Path, job: Job) -> AsyncIterator[Scenario]:
    """An empty deployment, with a message a query always finds, and two processes that index."""
    name = f"searchjob{uuid4().hex[:8]}"
    postgres, search = servers.postgres(1)[0], servers.opensearch()
    main = postgres.create_database(name)
    config = folder / "datalayer.toml"
    urls = {"main": main, "search": search.url_of(name)}
    routes = {"users": "main", "messages": "main", "search": "search"}
    config.write_text(configuration(urls, routes, main))
    settings = load_settings(config)
    await create_schemas(settings)
    async with DataLayer.open(settings, options=LayerOptions(project=False), clock=SystemClock()) as layer:
        scenario = Scenario(job, config, layer, search)
        try:
            for _ in range(2):
                await scenario.start_worker()
            sender = uuid4()
            for number in range(STABLE):
                await layer.messages.append(scenario.rooms[0], sender_id=sender, body=f"stable {number}")
            await scenario.in_step()
            yield scenario
        finally:
            for worker in scenario.workers:
                worker.kill()
                await worker.wait()


async def play(servers: Servers, folder: Path, job: Job) -> None:
    """All three parts. AssertionError names what went wrong."""
    async with opened(servers, folder, job) as scenario:
        await scenario.shuffle()
        lags = await scenario.measure("at rest")
        await scenario.rebuild()
        p99 = lags[min(len(lags) - 1, int(len(lags) * 0.99))]
        assert p99 < job.p99_s, f"search is {p99:.3f} s behind at p99"


def main() -> None:
    """Run it by hand."""
    parser = argparse.ArgumentParser(description=__doc__)
    whole = Job()
    parser.add_argument("--operations", type=int, default=whole.operations)
    parser.add_argument("--rate", type=float, default=whole.rate)
    parser.add_argument("--seconds", type=float, default=whole.seconds)
    parser.add_argument("--p99", type=float, default=whole.p99_s, help="Seconds that search may be behind at p99.")
    chosen = parser.parse_args()
    job = Job(chosen.operations, chosen.rate, chosen.seconds, p99_s=chosen.p99)
    with Servers() as servers, working_folder() as folder:
        asyncio.run(play(servers, folder, job))


if __name__ == "__main__":
    main()
