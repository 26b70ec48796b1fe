"""Just enough of CQL's native protocol (version 4) to ask a node whether it serves, without a driver.

A driver would bring its pools and reconnection into the wait, and is itself what the tests are about.
"""

import socket
import struct
from enum import IntEnum

_TIMEOUT_S = 10.0
_REQUEST_V4 = 0x04
_HEADER = struct.Struct(">BBhBI")


class Consistency(IntEnum):
    """How many replicas a statement needs."""

    ONE = 0x01
    ALL = 0x05


class _Opcode(IntEnum):
    STARTUP = 0x01
    READY = 0x02
    OPTIONS = 0x05
    SUPPORTED = 0x06
    QUERY = 0x07
    RESULT = 0x08


def serves(host: str, port: int) -> bool:
    """Whether a node speaks CQL there."""
    try:
        with _connect(host, port) as link:
            return _ask(link, _Opcode.OPTIONS, b"")[0] == _Opcode.SUPPORTED
    except OSError:
        return False


def execute(host: str, port: int, statement: str, consistency: Consistency = Consistency.ONE) -> str | None:
    """Runs one statement and drops its rows; returns None, or what the server or the network had against it."""
    try:
        with _connect(host, port) as link:
            opcode, body = _ask(link, _Opcode.STARTUP, b"\0\1" + _string("CQL_VERSION") + _string("3.0.0"))
            if opcode != _Opcode.READY:
                return f"no READY but {opcode}: {body!r}"
            text = statement.encode()
            query = struct.pack(">I", len(text)) + text + struct.pack(">HB", consistency, 0)
            opcode, body = _ask(link, _Opcode.QUERY, query)
    except OSError as error:
        return str(error)
    return None if opcode == _Opcode.RESULT else body.decode(errors="replace")


def _connect(host: str, port: int) -> socket.socket:
    return socket.create_connection((host, port), timeout=_TIMEOUT_S)


def _string(text: str) -> bytes:
    return struct.pack(">H", len(text)) + text.encode()


def _ask(link: socket.socket, opcode: _Opcode, body: bytes) -> tuple[int, bytes]:
    link.sendall(_HEADER.pack(_REQUEST_V4, 0, 0, opcode, len(body)) + body)
    _, _, _, answer, length = _HEADER.unpack(_receive(link, _HEADER.size))
    return answer, _receive(link, length)


def _receive(link: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        chunk = link.recv(size - len(data))
        if not chunk:
            raise ConnectionResetError("the node closed the connection")
        data += chunk
    return data
