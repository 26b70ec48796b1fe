"""What DynamoDB may answer to whoever makes a table, and what the library makes of it: a real boto3 asks a scripted server."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest

from datalayer.clock import SystemClock
from datalayer.errors import PreconditionFailed
from datalayer.settings import BackendUrl
from datalayer.stores.dynamodb.backend import DynamoBackend, create_backend

Answer = tuple[int, Mapping[str, Any]]
ACTIVE: Answer = (200, {"Table": {"TableStatus": "ACTIVE"}})


def refusal(code: str) -> Answer:
    return 400, {"__type": f"com.amazonaws.dynamodb.v20120810#{code}", "message": "arn:aws:iam::123456789012:user/me"}


ABSENT = refusal("ResourceNotFoundException")
DENIED = refusal("AccessDeniedException")


@contextlib.asynccontextmanager
async def scripted(answers: Mapping[str, list[Answer]]) -> AsyncIterator[DynamoBackend]:
    """A server that answers each operation with one answer after the other, the last for ever."""
    left = {name: list(found) for name, found in answers.items()}
    left["ListTables"] = [(200, {"TableNames": []})]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        lines = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
        await reader.readexactly(int(lines["content-length"]))
        found = next(left[name] for name in left if lines["x-amz-target"].endswith(f".{name.lower()}"))
        status, content = found.pop(0) if len(found) > 1 else found[0]
        body = json.dumps(content).encode()
        about = f"Content-Type: application/x-amz-json-1.0\r\nContent-Length: {len(body)}"
        writer.write(f"HTTP/1.1 {status} X\r\nConnection: close\r\n{about}\r\n\r\n".encode() + body)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    url = BackendUrl.parse(f"dynamodb://key:secret@app?endpoint=http://127.0.0.1:{port}&region=us-east-1")
    backend = create_backend("dynamo", url, pool_max=2, clock=SystemClock())
    try:
        await backend.open()
        yield backend
    finally:
        await backend.close()
        server.close()


@pytest.mark.parametrize(
    ("operation", "answers"),
    [
        ("DescribeTable", {"DescribeTable": [DENIED]}),
        ("CreateTable", {"DescribeTable": [ABSENT], "CreateTable": [DENIED]}),
        ("UpdateTimeToLive", {"DescribeTable": [ACTIVE], "UpdateTimeToLive": [DENIED]}),
    ],
)
async def test_a_right_that_is_missing_is_told_at_once_and_by_its_name(
    operation: str, answers: Mapping[str, list[Answer]]
) -> None:
    began = time.monotonic()
    async with scripted(answers) as backend:
        with pytest.raises(PreconditionFailed, match=f"table t\\) does not permit {operation}") as raised:
            await backend.make_table("t", "k", "S", ttl="e")
    assert raised.value.hint == f"grant dynamodb:{operation} in its policy"
    assert "123456789012" not in str(raised.value)
    assert time.monotonic() - began < 20, "and not after the minute in which a table may become ready"


async def test_a_table_that_another_process_makes_meanwhile_is_waited_for() -> None:
    answers = {
        "DescribeTable": [ABSENT, (200, {"Table": {"TableStatus": "CREATING"}}), ACTIVE],
        "CreateTable": [refusal("ResourceInUseException")],
        "UpdateTimeToLive": [refusal("ValidationException")],
    }
    async with scripted(answers) as backend:
        await backend.make_table("t", "k", "S", ttl="e")
