"""The S3 server: objects survive kills, nothing is left."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import boto3
import botocore.config
import botocore.exceptions
import pytest

from datalayer._settings.url import BackendUrl
from tests.servers import NotControllable, ServerError, Servers
from tests.servers.given import S3_VARIABLE
from tests.servers.interface import S3Server
from tests.servers.ports import is_free
from tests.servers.s3 import LocalS3
from tests.servers.watchdog import look

# Where a service is given by address there is no local starter to test.
__test__ = S3_VARIABLE not in os.environ
pytestmark = pytest.mark.servers


@pytest.fixture(scope="module")
def local() -> Iterator[Servers]:
    with Servers() as servers:
        yield servers


@pytest.fixture(scope="module")
def server(local: Servers) -> LocalS3:
    server = local.s3()
    assert isinstance(server, LocalS3)
    assert local.s3() is server
    return server


@contextlib.contextmanager
def asking(server: S3Server, *, patience_s: float = 30) -> Iterator[Any]:
    client = boto3.client(
        "s3",
        endpoint_url=server.endpoint,
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
        region_name="us-east-1",
        config=botocore.config.Config(
            connect_timeout=30,
            read_timeout=patience_s,
            retries={"total_max_attempts": 1},
            s3={"addressing_style": "path"},
        ),
    )
    try:
        yield client
    finally:
        client.close()


def test_the_url_is_one_of_a_backend(server: LocalS3) -> None:
    url = BackendUrl.parse(server.create_bucket("case-17"))
    assert (url.database, url.user, url.password) == ("case-17", server.access_key, server.secret_key)
    assert url.options == {"endpoint": server.endpoint, "path_style": True, "region": "us-east-1"}
    assert BackendUrl.parse(server.url).database == "datalayer"


def test_buckets_are_made_once_and_a_bad_name_is_refused(server: LocalS3) -> None:
    assert server.create_bucket("twice") == server.create_bucket("twice")
    with asking(server) as client:
        assert {"datalayer", "twice"} <= {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}
    with pytest.raises(ServerError, match=r"(?s)bucket A_B was not made.*InvalidBucketName"):
        server.create_bucket("A_B")


def test_kill9_and_start_keep_objects(server: LocalS3) -> None:
    server.create_bucket("kill9")
    with asking(server) as client:
        for number in range(50):
            client.put_object(Bucket="kill9", Key=f"folder/key-{number}", Body=b"x" * number)
        pid = server.pid
        server.kill9()
        assert look(pid) is None
        assert is_free(server.host, server.port)
        with pytest.raises(botocore.exceptions.EndpointConnectionError):
            client.list_buckets()
        server.start()
        for number in range(50):
            assert client.get_object(Bucket="kill9", Key=f"folder/key-{number}")["Body"].read() == b"x" * number


def test_one_of_two_writers_of_a_new_key_wins(server: LocalS3) -> None:
    server.create_bucket("races")
    with asking(server) as client:
        client.put_object(Bucket="races", Key="one", Body=b"first", IfNoneMatch="*")
        with pytest.raises(botocore.exceptions.ClientError, match="PreconditionFailed"):
            client.put_object(Bucket="races", Key="one", Body=b"second", IfNoneMatch="*")
        assert client.get_object(Bucket="races", Key="one")["Body"].read() == b"first"


def test_stop_and_start_may_be_repeated(server: LocalS3) -> None:
    server.stop()
    server.stop()
    assert not server.running
    server.start()
    pid = server.pid
    server.start()
    assert server.pid == pid


def test_pause_hangs_and_resume_answers(server: LocalS3) -> None:
    with asking(server, patience_s=0.5) as client:
        server.pause()
        try:
            with pytest.raises(botocore.exceptions.ReadTimeoutError):
                client.list_buckets()
        finally:
            server.resume()
    with asking(server) as client:
        assert client.list_buckets()["Buckets"]


def test_a_given_service_is_used_and_not_steered(server: LocalS3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(S3_VARIABLE, server.url)
    with Servers() as servers:
        given = servers.s3()
        assert given.create_bucket("given") == server.url_of("given")
        with asking(given) as client:
            client.put_object(Bucket="given", Key="key", Body=b"")
        with pytest.raises(NotControllable, match="cannot be killed") as refusal:
            given.kill9()
        assert server.secret_key not in str(refusal.value)
        with pytest.raises(NotControllable, match=S3_VARIABLE):
            servers.fresh_s3("own")


def test_closing_ends_it() -> None:
    with Servers() as servers:
        server = servers.fresh_s3("closed")
        pid, folder = server.pid, servers._folder
        assert folder is not None
        assert folder.exists()
    assert look(pid) is None
    assert not folder.exists()
