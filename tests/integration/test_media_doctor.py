"""The doctor's look at where media lie: each thing that may be wrong with a bucket or folder is one clear sentence."""

import datetime as dt
import http.client
import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import boto3
import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials

from datalayer.clock import SystemClock
from datalayer.migrators.doctor import Finding, diagnose
from datalayer.settings import parse_settings
from tests.servers import Servers
from tests.servers.interface import S3Server

pytestmark = pytest.mark.servers


@pytest.fixture(autouse=True)
def _memory_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an earlier test left in the memory of this process belongs to another deployment."""
    monkeypatch.setattr("datalayer.stores.memory.server.SERVERS", {})


@pytest.fixture
def bucket(servers: Servers) -> str:
    name = f"doctor-{uuid4().hex[:12]}"
    servers.s3().create_bucket(name)
    return name


async def wrong(tmp_path: Path, url: str) -> list[Finding]:
    """What is wrong before the first use."""
    found = await looked(tmp_path, url)
    return [one for one in found if not one.ok]


async def looked(tmp_path: Path, url: str) -> list[Finding]:
    document = {
        "backends": {"main": {"url": f"sqlite:///{tmp_path}/main.sqlite"}, "b": {"url": url}},
        "routes": {"media": "b"},
        "control": {"url": f"sqlite:///{tmp_path}/control.sqlite"},
    }
    return [one for one in await diagnose(parse_settings(document), SystemClock()) if one.check.endswith(" b")]


async def test_a_bucket_in_order_is_ok_and_stays_as_it_was(servers: Servers, tmp_path: Path, bucket: str) -> None:
    server = servers.s3()
    url = server.url_of(bucket)
    before, first = names(server, bucket), await looked(tmp_path, url)
    assert [(one.check, one.ok) for one in first] == [("backend b", True), ("media on b", True)]
    assert first[1].detail == "a test object was stored once, read and deleted"
    assert names(server, bucket) == before == []


def names(server: S3Server, bucket: str) -> list[str]:
    return [item["Key"] for item in asking(server).list_objects_v2(Bucket=bucket).get("Contents", ())]


def asking(server: S3Server) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=server.endpoint,
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
        region_name="us-east-1",
        config=Config(s3={"addressing_style": "path"}),
    )


def make_user(server: S3Server, access: str, secret: str) -> None:
    """A user of the server without any rights, by the server's own way."""
    body = f"<Account><Access>{access}</Access><Secret>{secret}</Secret><Role>user</Role></Account>"
    request = AWSRequest("PATCH", f"{server.endpoint}/create-user", data=body)
    S3SigV4Auth(Credentials(server.access_key, server.secret_key), "s3", "us-east-1").add_auth(request)
    parts = urlsplit(server.endpoint)
    link = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=10)
    try:
        link.request("PATCH", "/create-user", body=body, headers=dict(request.headers.items()))
        answer = link.getresponse()
        assert answer.status < 300, answer.read()
    finally:
        link.close()


async def test_a_bucket_that_is_not_there(servers: Servers, tmp_path: Path) -> None:
    (found,) = await wrong(tmp_path, servers.s3().url_of("nowhere"))
    assert (found.check, found.detail) == ("backend b", "the bucket 'nowhere' does not exist")
    assert found.way_out == "make it, or correct the name in the backend's url"


@pytest.mark.parametrize("part", ["access_key", "secret_key"])
async def test_a_wrong_login(servers: Servers, tmp_path: Path, bucket: str, part: str) -> None:
    server = servers.s3()
    right = getattr(server, part)
    scheme, _, rest = server.url_of(bucket).partition("://")
    login, _, place = rest.partition("@")
    wrong_login = login.replace(right, "another0" if part == "access_key" else "otherother")
    (found,) = await wrong(tmp_path, f"{scheme}://{wrong_login}@{place}")
    assert found.detail == f"the S3 server of bucket {bucket!r} refuses the login"
    assert found.way_out == "correct key, secret or region of the backend"


async def test_rights_that_are_missing(servers: Servers, tmp_path: Path, bucket: str) -> None:
    server, access = servers.s3(), f"user{uuid4().hex[:8]}"
    make_user(server, access, "userssecret")
    url = server.url_of(bucket).replace(f"{server.access_key}:{server.secret_key}", f"{access}:userssecret")
    (found,) = await wrong(tmp_path, url)
    assert (found.check, found.detail) == ("backend b", f"the login may not do this in bucket {bucket!r}: a listing")
    assert "s3:PutObject" in found.way_out
    arn = f"arn:aws:s3:::{bucket}"
    both = (("s3:ListBucket", arn), ("s3:GetObject", f"{arn}/*"))
    allowed = [{"Effect": "Allow", "Principal": access, "Action": [act], "Resource": on} for act, on in both]
    asking(server).put_bucket_policy(Bucket=bucket, Policy=json.dumps({"Statement": allowed}))
    (found,) = await wrong(tmp_path, url)
    assert found.check == "media on b"
    assert found.detail.startswith(
        f"a test object could not be stored: the login may not do this in bucket {bucket!r}: object "
    )
    assert "s3:PutObject" in found.way_out
    assert "userssecret" not in str(found)


async def test_a_clock_that_is_wrong(
    servers: Servers, tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def early(remove_tzinfo: bool = True) -> dt.datetime:
        now = dt.datetime.now(dt.UTC) - dt.timedelta(hours=1)
        return now.replace(tzinfo=None) if remove_tzinfo else now

    monkeypatch.setattr("botocore.auth.get_current_datetime", early)
    (found,) = await wrong(tmp_path, servers.s3().url_of(bucket))
    assert found.detail == (
        f"the clock of this machine and that of the S3 server of bucket {bucket!r} differ by too much"
    )
    assert found.way_out == "let both follow a time server (NTP)"


async def test_an_endpoint_where_nobody_is(servers: Servers, tmp_path: Path, bucket: str) -> None:
    url = servers.s3().url_of(bucket).replace(str(urlsplit(servers.s3().endpoint).port), "1")
    (found,) = await wrong(tmp_path, url)
    assert found.detail == f"the S3 server of bucket {bucket!r} cannot be reached (a listing)"
    assert found.way_out == "bring it back, or correct the endpoint in the backend's url"


async def test_a_folder_in_order_and_one_that_is_none(tmp_path: Path) -> None:
    place = tmp_path / "media"
    assert [one.check for one in await looked(tmp_path, f"file://{place}")] == ["backend b"]
    assert not place.exists()
    place.mkdir()
    found = await looked(tmp_path, f"file://{place}")
    assert [(one.check, one.ok) for one in found] == [("backend b", True), ("media on b", True)]
    assert [path for path in place.rglob("*") if path.is_file()] == []
    (place / "media").rmdir()
    (place / "media").symlink_to(tmp_path)
    (one,) = await wrong(tmp_path, f"file://{place}")
    assert one.detail.startswith("a test object could not be stored: ")
    assert "a link, which is not followed" in one.detail
