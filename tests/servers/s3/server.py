"""One S3 server (versitygw over a folder) as a child process, or given by URL."""

import http
import os
import signal
from pathlib import Path

from tests.servers import web
from tests.servers.aws import Account, Service
from tests.servers.errors import InstallFailed
from tests.servers.given import Given
from tests.servers.golang import go_installed
from tests.servers.local import LocalServer
from tests.servers.ports import LOOPBACK, PortLease
from tests.servers.process import Command, ServerProcess, clean_environment
from tests.servers.s3.signing import create_bucket
from tests.servers.watchdog import MARK

BINARY_VARIABLE = "DATALAYER_VERSITYGW"
FIRST_BUCKET = "datalayer"
_VERSION = "v1.8.0"
_REGION = "us-east-1"
_START_TIMEOUT_S = 60.0
_HEALTH = "/health"


def install_s3() -> Path:
    """The binary of versitygw: named by the environment, else built by Go.

    Raises:
        InstallFailed: no Go, or no way to its module proxy.
    """
    if given := os.environ.get(BINARY_VARIABLE):
        if not Path(given).is_file():
            raise InstallFailed(f"{BINARY_VARIABLE}={given} is no file")
        return Path(given)
    return go_installed("github.com/versity/versitygw/cmd/versitygw", _VERSION)


class _Buckets(Service):
    """What is the same for a server of our own and a given one."""

    def url_of(self, bucket: str) -> str:
        """The URL of a backend over that bucket."""
        return self.account.url("s3", bucket, path_style="true")

    def create_bucket(self, name: str) -> str:
        """Makes a bucket, when there is none of that name, and returns its URL."""
        create_bucket(self.account, name)
        return self.url_of(name)


class LocalS3(_Buckets, LocalServer):
    """An S3 server of our own, on a free port of 127.0.0.1; its buckets are folders on the disk.

    What it acknowledged survives kill9(): files are complete when they get their names. It does not fsync them.
    """

    def __init__(self, name: str, *, binary: Path, folder: Path, lease: PortLease, mark: str) -> None:
        super().__init__(name, lease.port)
        self.account = Account(f"http://{LOOPBACK}:{lease.port}", "datalayer", "secretsecret", _REGION)
        self.url = self.url_of(FIRST_BUCKET)
        self._folders = [folder / part for part in ("iam", "versions", "objects")]
        iam, versions, objects = map(str, self._folders)
        options = ("--port", f"{LOOPBACK}:{lease.port}", "--region", _REGION, "--quiet", "--keep-alive")
        argv = (str(binary), *options, "--health", _HEALTH, "--iam-dir", iam)
        secrets = {"ROOT_ACCESS_KEY": self.access_key, "ROOT_SECRET_KEY": self.secret_key}
        self.process = ServerProcess(
            name,
            Command(
                (*argv, "posix", "--versioning-dir", versions, objects),
                folder,
                folder / "s3.log",
                clean_environment(HOME=str(folder), **secrets, **{MARK: mark}),
            ),
            ready=self._is_ready,
            listens=[(LOOPBACK, lease.port)],
            start_timeout_s=_START_TIMEOUT_S,
            stop_signal=signal.SIGTERM,
        )

    def start(self) -> None:
        """Starts over the same buckets and waits until it serves; the first time with one bucket."""
        for folder in self._folders:
            folder.mkdir(exist_ok=True)
        self.process.start()
        self.create_bucket(FIRST_BUCKET)

    def _is_ready(self, _pid: int) -> bool:
        return web.status_of(self.host, self.port, _HEALTH) == http.HTTPStatus.OK


class GivenS3(_Buckets, Given):
    """An S3 service given by the URL of one bucket, which names its endpoint; buckets made stay behind."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.account = Account.of(url)
