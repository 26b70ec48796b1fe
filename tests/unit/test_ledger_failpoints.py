import os
import signal
import subprocess
import sys

import pytest

from datalayer.errors import InvalidArgument
from datalayer.testing.failpoints import EXIT_CODE, VARIABLE, FailpointReached, Failpoints

_PROCESS = """
import asyncio
from datalayer.testing.failpoints import Failpoints
async def main():
    points = Failpoints.from_environment()
    for number in range(1, 4):
        await points.reach("hold.drained")
        print(number, flush=True)
asyncio.run(main())
"""


def started(text: str) -> subprocess.Popen[str]:
    environment = {**os.environ, VARIABLE: text}
    return subprocess.Popen([sys.executable, "-c", _PROCESS], stdout=subprocess.PIPE, text=True, env=environment)


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("hold.drained=kill@2", -signal.SIGKILL, "1\n"),
        ("hold.*=exit@3", EXIT_CODE, "1\n2\n"),
        ("other=kill", 0, "1\n2\n3\n"),
        ("", 0, "1\n2\n3\n"),
    ],
)
def test_a_process_dies_at_the_named_point_at_the_nth_time(text: str, code: int, said: str) -> None:
    with started(text) as process:
        assert process.communicate()[0] == said
    assert process.returncode == code


def test_a_paused_process_goes_on_when_it_is_told_to() -> None:
    with started("hold.drained=pause") as process:
        pid, status = os.waitpid(process.pid, os.WUNTRACED)
        assert (pid, os.WIFSTOPPED(status)) == (process.pid, True)
        process.send_signal(signal.SIGCONT)
        assert process.communicate()[0] == "1\n2\n3\n"


async def test_raise_raises_once_and_every_point_is_counted() -> None:
    points = Failpoints.from_text("a=raise; b=raise@2")
    with pytest.raises(FailpointReached):
        await points.reach("a")
    await points.reach("a")
    await points.reach("b")
    with pytest.raises(FailpointReached):
        await points.reach("b")
    assert points.reached == {"a": 2, "b": 2}


@pytest.mark.parametrize("text", ["kill", "a=die", "=kill", "a=kill@x", "a=kill@"])
def test_what_is_no_failpoint_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="no failpoint"):
        Failpoints.from_text(text)
