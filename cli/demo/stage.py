"""The demo's stage: its folder, its configuration, and the processes it starts and must not leave behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from datalayer.errors import PreconditionFailed
from datalayer.settings import load_settings
from datalayer.testing.failpoints import VARIABLE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from datalayer.settings import Settings
    from datalayer.testing.sabotage import Sabotage

PRELOAD_S: Final = 300.0
READY_S: Final = 60.0
STOP_S: Final = 30.0
COMMAND_S: Final = 180.0
TARGET: Final = "second"
CONFIG: Final = """\
# The demo's deployment: messages live in one SQLite file and move to another.
[backends.main]
url = "sqlite:///main.sqlite"

[backends.second]
url = "sqlite:///second.sqlite"

[routes]
users = "main"
messages = "main"
"""


@dataclass(frozen=True, slots=True)
class Role:
    """One process of the workload: its name and what it does how often."""

    name: str
    mix: str
    rate: float
    tasks: int = 4


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended; ``told`` is its last line of JSON."""

    code: int
    told: dict[str, Any]
    errors: str

    @property
    def killed(self) -> bool:
        """Whether SIGKILL ended it."""
        return self.code == -signal.SIGKILL


@dataclass(slots=True)
class Stage:
    """Starts processes in one folder. ``failures`` collects those that ended by themselves."""

    directory: Path
    seed: int
    messages: int
    say: Callable[[str], None]
    sabotage: Sabotage | None = None
    command_s: float = COMMAND_S
    """How long a command may take."""
    failures: list[str] = field(default_factory=list)
    _workers: dict[str, asyncio.subprocess.Process] = field(default_factory=dict)

    @property
    def config(self) -> Path:
        """The configuration file of every process."""
        return self.directory / "datalayer.toml"

    @property
    def settings(self) -> Settings:
        """The same for this process."""
        return load_settings(self.config, environ={})

    @property
    def ledgers(self) -> Path:
        """The folder of the ledgers."""
        return self.directory / "ledger"

    def prepare(self) -> None:
        """Write the configuration into an empty folder. Raises PreconditionFailed when it holds something."""
        self.directory.mkdir(parents=True, exist_ok=True)
        if any(self.directory.iterdir()):
            raise PreconditionFailed(
                f"the folder {self.directory} is not empty", hint="name a new one with --directory, or leave it out"
            )
        self.ledgers.mkdir()
        self.config.write_text(CONFIG)

    async def preload(self) -> None:
        """Fill the rooms by a process of its own."""
        process = await self._start_worker(Role("preload", "writer", 0), "--preload")
        try:
            code = await asyncio.wait_for(process.wait(), PRELOAD_S)
        finally:
            await _kill(process)
        if code != 0:
            raise PreconditionFailed(f"preload ended with {code}: {self._errors('preload')}")

    async def start(self, roles: Sequence[Role]) -> None:
        """Start workers and return when each one serves."""
        for role in roles:
            self._workers[role.name] = await self._start_worker(role)
        for role in roles:
            await self._await_ready(role.name)

    async def stop(self) -> None:
        """Let every worker finish what it has begun, and end."""
        for name, process in list(self._workers.items()):
            assert process.stdin is not None
            process.stdin.close()
            try:
                code = await asyncio.wait_for(process.wait(), STOP_S)
            except TimeoutError:
                code = await _kill(process)
                self.failures.append(f"worker {name} did not end and was killed")
            if code != 0:
                self.failures.append(f"worker {name} ended with {code}: {self._errors(name)}")
            del self._workers[name]

    async def kill(self, name: str) -> None:
        """End a worker by SIGKILL, in the middle of whatever it does."""
        await _kill(self._workers.pop(name))

    @property
    def workers(self) -> list[str]:
        """The names of those that run."""
        return list(self._workers)

    def pid(self, name: str) -> int:
        """The process id of a worker."""
        return self._workers[name].pid

    async def close(self) -> None:
        """End whatever still runs. Idempotent."""
        for process in self._workers.values():
            await _kill(process)
        self._workers.clear()

    def check(self) -> None:
        """Note workers that ended by themselves."""
        for name, process in list(self._workers.items()):
            if process.returncode is not None:
                self.failures.append(f"worker {name} ended by itself with {process.returncode}: {self._errors(name)}")
                del self._workers[name]

    async def command(self, *words: str, failpoints: str = "", watch: Callable[[], Any] | None = None) -> Ended:
        """Run ``datalayer WORDS --yes --json`` as a process of its own.

        ``watch`` is a coroutine function; when it returns before the command ended, the command is killed.
        """
        process = await self._start_command(words, failpoints)
        output = asyncio.create_task(process.communicate())
        watching = asyncio.create_task(watch()) if watch is not None else None
        try:
            waiting = {output} if watching is None else {output, watching}
            done, _ = await asyncio.wait(waiting, timeout=self.command_s, return_when=asyncio.FIRST_COMPLETED)
            if watching is not None and watching in done:
                watching.result()
            if output not in done:
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(signal.SIGKILL)
            if not done:
                self.failures.append(f"datalayer {' '.join(words)} took more than {self.command_s:.0f} s")
            stdout, stderr = await output
        finally:
            if watching is not None:
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)
            if process.returncode is None:
                await _kill(process)
        assert process.returncode is not None
        return Ended(process.returncode, _last_object(stdout), stderr.decode(errors="replace"))

    async def _start_command(self, words: Sequence[str], failpoints: str) -> asyncio.subprocess.Process:
        module = ["datalayer.cli.demo.staged"] if failpoints or self.sabotage else ["datalayer.cli"]
        if self.sabotage:
            module += ["--sabotage", self.sabotage]
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            *module,
            *words,
            "--config",
            str(self.config),
            "--json",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=_environment(failpoints),
        )

    async def _start_worker(self, role: Role, *more: str) -> asyncio.subprocess.Process:
        options = {
            "--config": self.config,
            "--ledger": self.ledgers,
            "--name": role.name,
            "--seed": self.seed,
            "--messages": self.messages,
            "--mix": role.mix,
            "--rate": role.rate,
            "--tasks": role.tasks,
        }
        if self.sabotage is not None and "--preload" not in more:
            options["--sabotage"] = self.sabotage
        words = [str(word) for pair in options.items() for word in pair]
        # A file, not a pipe: nobody reads along, and a full pipe would stop the worker.
        with self._error_file(role.name).open("wb") as errors:
            return await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "datalayer.testing.workload",
                *words,
                *more,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
                env=_environment(),
            )

    async def _await_ready(self, name: str) -> None:
        stdout = self._workers[name].stdout
        assert stdout is not None
        line = await asyncio.wait_for(stdout.readline(), READY_S)
        if not line:
            raise PreconditionFailed(f"worker {name} did not start: {self._errors(name)}")

    def _errors(self, name: str) -> str:
        lines = self._error_file(name).read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"

    def _error_file(self, name: str) -> Path:
        return self.directory / f"{name}.stderr"


def _environment(failpoints: str = "") -> dict[str, str]:
    """This process's, without what configures a data layer: the demo must never touch the user's own stores."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DATALAYER_")}
    return {**kept, VARIABLE: failpoints}


async def _kill(process: asyncio.subprocess.Process) -> int:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGKILL)
    return await process.wait()


def _last_object(stdout: bytes) -> dict[str, Any]:
    for line in reversed(stdout.splitlines()):
        with contextlib.suppress(json.JSONDecodeError):
            found = json.loads(line)
            if isinstance(found, dict):
                return found
    return {}


def monotonic_of(at_us: int) -> int:
    """The CLOCK_MONOTONIC nanoseconds of a wall-clock time in microseconds, near enough for a plot."""
    return time.monotonic_ns() - (time.time_ns() - at_us * 1000)
