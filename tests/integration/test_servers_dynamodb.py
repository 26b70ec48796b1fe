"""DynamoDB Local: items survive kills, nobody reaches it from outside, nothing is left."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import botocore.config
import botocore.exceptions
import pytest

from datalayer._settings.url import BackendUrl
from tests.servers import NotControllable, Servers
from tests.servers.dynamodb import LocalDynamoDB
from tests.servers.given import DYNAMODB_VARIABLE
from tests.servers.interface import DynamoDBServer
from tests.servers.ports import is_free
from tests.servers.watchdog import look

# Where a service is given by address there is no local starter to test.
__test__ = DYNAMODB_VARIABLE not in os.environ
pytestmark = pytest.mark.servers


@pytest.fixture(scope="module")
def local() -> Iterator[Servers]:
    with Servers() as servers:
        yield servers


@pytest.fixture(scope="module")
def server(local: Servers) -> LocalDynamoDB:
    server = local.dynamodb()
    assert isinstance(server, LocalDynamoDB)
    assert local.dynamodb() is server
    return server


@contextlib.contextmanager
def asking(server: DynamoDBServer, *, patience_s: float = 30) -> Iterator[Any]:
    client = boto3.client(
        "dynamodb",
        endpoint_url=server.endpoint,
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
        region_name=server.region,
        config=botocore.config.Config(connect_timeout=30, read_timeout=patience_s, retries={"total_max_attempts": 1}),
    )
    try:
        yield client
    finally:
        client.close()


def create_table(client: Any, name: str) -> None:
    client.create_table(
        TableName=name,
        KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
        BillingMode="PAY_PER_REQUEST",
    )


def test_the_url_is_one_of_a_backend(server: LocalDynamoDB) -> None:
    url = BackendUrl.parse(server.url_of("case-17"))
    assert (url.database, url.user, url.password) == ("case-17", server.access_key, server.secret_key)
    assert url.options == {"endpoint": server.endpoint, "region": "local"}
    assert BackendUrl.parse(server.url).database == "datalayer"


def test_it_listens_on_the_loopback_interface_alone(server: LocalDynamoDB) -> None:
    # Columns of /proc/net/tcp6: number, local address:port, remote, state (0A listens).
    lines = [line.split() for line in Path("/proc/net/tcp6").read_text().splitlines()[1:]]
    lines += [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    port = f"{server.port:04X}"
    hosts = [words[1].split(":")[0] for words in lines if words[1].endswith(f":{port}") and words[3] == "0A"]
    assert hosts
    assert all(host.endswith("0100007F") for host in hosts), hosts


def test_kill9_and_start_keep_items(server: LocalDynamoDB) -> None:
    with asking(server) as client:
        create_table(client, "kill9")
        for number in range(50):
            client.put_item(TableName="kill9", Item={"id": {"S": str(number)}})
        pid = server.pid
        server.kill9()
        assert look(pid) is None
        assert is_free(server.host, server.port)
        with pytest.raises(botocore.exceptions.EndpointConnectionError):
            client.list_tables()
        server.start()
        found = client.scan(TableName="kill9", ConsistentRead=True)["Items"]
        assert {item["id"]["S"] for item in found} == {str(number) for number in range(50)}


def test_one_of_two_writers_of_a_new_item_wins(server: LocalDynamoDB) -> None:
    with asking(server) as client:
        create_table(client, "races")
        put = {"TableName": "races", "Item": {"id": {"S": "one"}}, "ConditionExpression": "attribute_not_exists(id)"}
        client.put_item(**put)
        with pytest.raises(botocore.exceptions.ClientError, match="ConditionalCheckFailed"):
            client.put_item(**put)


def test_pause_hangs_and_resume_answers(server: LocalDynamoDB) -> None:
    with asking(server, patience_s=0.5) as client:
        server.pause()
        try:
            with pytest.raises(botocore.exceptions.ReadTimeoutError):
                client.list_tables()
        finally:
            server.resume()
    with asking(server) as client:
        assert "TableNames" in client.list_tables()


def test_a_given_service_is_used_and_not_steered(server: LocalDynamoDB, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DYNAMODB_VARIABLE, server.url)
    with Servers() as servers:
        given = servers.dynamodb()
        assert given.url_of("given") == server.url_of("given")
        with asking(given) as client:
            client.list_tables()
        with pytest.raises(NotControllable, match="cannot be killed") as refusal:
            given.kill9()
        assert server.secret_key not in str(refusal.value)
        with pytest.raises(NotControllable, match=DYNAMODB_VARIABLE):
            servers.fresh_dynamodb("own")


def test_closing_ends_it() -> None:
    with Servers() as servers:
        server = servers.fresh_dynamodb("closed")
        server.stop()
        assert not server.running
        server.start()
        pid, folder = server.pid, servers._folder
        assert folder is not None
        assert folder.exists()
    assert look(pid) is None
    assert not folder.exists()
