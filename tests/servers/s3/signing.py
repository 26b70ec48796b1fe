"""Just enough of S3 (one signed request without a body) to make a bucket, without a driver."""

import hashlib
import hmac
import http.client
from datetime import UTC, datetime
from urllib.parse import urlsplit

from tests.servers.aws import Account
from tests.servers.errors import ServerError

_TIMEOUT_S = 30.0
_OK, _CONFLICT = 200, 409
_NOTHING = hashlib.sha256(b"").hexdigest()
_SIGNED = "host;x-amz-content-sha256;x-amz-date"


def create_bucket(account: Account, name: str) -> None:
    """Makes a bucket; harmless when the account has it.

    Raises:
        OSError: nobody answers there.
        ServerError: it was refused; the message is the server's.
    """
    place = urlsplit(account.endpoint)
    kind = http.client.HTTPSConnection if place.scheme == "https" else http.client.HTTPConnection
    link = kind(place.hostname or "", place.port, timeout=_TIMEOUT_S)
    try:
        link.request("PUT", f"/{name}", headers=_headers(account, place.netloc, f"/{name}"))
        answer = link.getresponse()
        said = answer.read().decode(errors="replace")
    finally:
        link.close()
    mine = answer.status == _CONFLICT and "BucketAlreadyOwnedByYou" in said
    if answer.status != _OK and not mine:
        raise ServerError(f"bucket {name} was not made at {account.endpoint}: {answer.status} {said}")


def _headers(account: Account, host: str, path: str) -> dict[str, str]:
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    scope = f"{stamp[:8]}/{account.region}/s3/aws4_request"
    headers = {"host": host, "x-amz-content-sha256": _NOTHING, "x-amz-date": stamp}
    lines = "".join(f"{name}:{value}\n" for name, value in headers.items())
    request = f"PUT\n{path}\n\n{lines}\n{_SIGNED}\n{_NOTHING}"
    asked = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
    key = f"AWS4{account.secret_key}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.new(key, asked.encode(), "sha256").hexdigest()
    credential = f"{account.access_key}/{scope}"
    said = f"AWS4-HMAC-SHA256 Credential={credential}, SignedHeaders={_SIGNED}, Signature={signature}"
    return {**headers, "authorization": said}
