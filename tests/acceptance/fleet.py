"""A fleet of real processes on real servers: the demo's stage with another configuration, and its judgement."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datalayer.cli.demo.stage import Ended, Role, Stage
from datalayer.layer import DataLayer, LayerOptions
from datalayer.testing import oracle
from datalayer.testing.ledger import read_ledgers
from datalayer.testing.oracle import Findings
from datalayer.testing.probe import read_everything

ROLES = (
    Role("writer-1", "writer", 30),
    Role("writer-2", "writer", 30),
    Role("editor-1", "editor", 30),
    Role("deleter-1", "deleter", 20),
    Role("reader-1", "reader", 40),
    Role("reader-2", "reader", 40),
)
"""At least six processes; rates that leave two cores room for the servers."""


def configuration(backends: dict[str, str], routes: dict[str, str], control: str) -> str:
    """A datalayer.toml."""
    lines = [f'[backends.{name}]\nurl = "{url}"\n' for name, url in backends.items()]
    lines.append("[routes]\n" + "\n".join(f'{domain} = "{name}"' for domain, name in routes.items()) + "\n")
    lines.append(f'[control]\nurl = "{control}"\n')
    return "\n".join(lines)


@dataclass(slots=True)
class Fleet:
    """Processes, commands and what was found."""

    stage: Stage
    began: float = field(default_factory=time.monotonic)
    kills: int = 0

    @classmethod
    @asynccontextmanager
    async def open(cls, directory: Path, config: str, *, messages: int, seed: int = 1) -> AsyncIterator["Fleet"]:
        """A fleet in an empty folder; its processes end with the block."""
        fleet = cls(Stage(directory, seed, messages, say=print))
        stage = fleet.stage
        stage.prepare()
        stage.config.write_text(config)
        try:
            yield fleet
        finally:
            await stage.close()

    def tell(self, text: str) -> None:
        """One line of the scenario's log."""
        print(f"{time.monotonic() - self.began:7.1f} s  {text}", flush=True)

    async def start(self, roles: Sequence[Role] = ROLES) -> None:
        """Start workers."""
        await self.stage.start(roles)
        self.tell(f"{len(roles)} processes at work")

    async def serve(self, seconds: float) -> None:
        """Let the workers work; one that ends by itself is a failure."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            await asyncio.sleep(0.1)
            self.stage.check()
        assert self.stage.failures == [], self.stage.failures

    async def command(self, *words: str, code: int = 0, failpoints: str = "") -> Ended:
        """Run ``datalayer WORDS`` and expect an exit code; with failpoints, expect to be killed."""
        ended = await self.stage.command(*words, failpoints=failpoints)
        said = ended.told.get("error") or ended.errors[-400:]
        if failpoints:
            assert ended.killed, (
                f"datalayer {words} was to be killed at {failpoints}, but ended with {ended.code}: {said}"
            )
            self.kills += 1
            self.tell(f"SIGKILL of datalayer {' '.join(words[:2])} at {failpoints}")
        else:
            if ended.code != code and words[0] in {"migrate", "migrations"}:
                status = await self.stage.command("migrations", "status")
                for step in status.told.get("steps", []):
                    self.tell(f"step {step}")
            assert ended.code == code, f"datalayer {words} ended with {ended.code}: {said}"
            self.tell(f"datalayer {' '.join(words)} -> {ended.code}")
        return ended

    async def kill_worker(self, name: str) -> None:
        """SIGKILL of one worker."""
        await self.stage.kill(name)
        self.kills += 1
        self.tell(f"SIGKILL of {name}")

    async def verdict(self) -> dict[str, Any]:
        """A full verification by the command line; it must be clean."""
        ended = await self.command("migrations", "verify")
        assert ended.told["clean"] is True, ended.told
        return ended.told

    async def judge(self) -> Findings:
        """Stop the workers, read everything, judge every operation."""
        await self.stage.stop()
        assert self.stage.failures == [], self.stage.failures
        async with DataLayer.open(self.stage.config, options=LayerOptions(name="final", assist=False)) as layer:
            await read_everything(layer.messages, self.stage.ledgers)
        found = oracle.check(read_ledgers(self.stage.ledgers))
        self.tell(
            f"operations {found.operations}, lost {found.count('lost')}, ghost {found.count('ghost')}, "
            f"stale {found.count('stale')}, order {found.count('order')}, torn {found.count('torn')}, "
            f"not allowed errors {found.count('error')}, unknown {found.unknown}, errors {found.errors}"
        )
        return found


def holds_of(told: dict[str, Any]) -> list[str]:
    """The holds in a status: ms, and the ms of each part."""
    return [f"{hold['ms']} {hold['parts_ms']}" for hold in told.get("holds", [])]
