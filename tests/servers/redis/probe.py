"""Just enough of Redis's protocol (RESP2) to ask a server something, without a driver.

A driver would bring its pools, retries and its own view of the cluster into the wait, and is itself what the tests are
about.
"""

import socket
from typing import BinaryIO

from tests.servers.errors import ServerError

_TIMEOUT_S = 5.0

Reply = str | int | None | list["Reply"]


def ask(host: str, port: int, *words: str, password: str | None = None) -> Reply:
    """The answer to one command.

    Raises:
        OSError: nobody answers there.
        ServerError: the server refused the command; the message is its own.
    """
    with socket.create_connection((host, port), timeout=_TIMEOUT_S) as link, link.makefile("rb") as answers:
        if password is not None:
            link.sendall(_encoded("AUTH", password))
            _read(answers)
        link.sendall(_encoded(*words))
        return _read(answers)


def text(host: str, port: int, *words: str, password: str | None = None) -> str:
    """The answer to one command that answers with text."""
    answer = ask(host, port, *words, password=password)
    if not isinstance(answer, str):
        raise ServerError(f"{host}:{port} answered {words[0]} with {answer!r}, which is no text")
    return answer


def _encoded(*words: str) -> bytes:
    parts = [word.encode() for word in words]
    return b"".join([b"*%d\r\n" % len(parts), *(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)])


def _read(answers: BinaryIO) -> Reply:
    line = answers.readline()
    if not line.endswith(b"\r\n"):
        raise ConnectionError("the server closed the connection")
    kind, rest = line[:1], line[1:-2].decode(errors="replace")
    match kind:
        case b"+":
            return rest
        case b":":
            return int(rest)
        case b"$":
            return None if rest == "-1" else answers.read(int(rest) + 2)[:-2].decode(errors="replace")
        case b"*":
            return [_read(answers) for _ in range(int(rest))]
        case _:
            raise ServerError(rest)
