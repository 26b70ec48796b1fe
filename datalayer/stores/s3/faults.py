"""botocore's errors as the library's: one sentence each, that names bucket and way out and repeats nothing of theirs."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
)
from botocore.exceptions import (
    ConnectionError as BotoConnectionError,
)
from botocore.parsers import ResponseParserError

from datalayer.errors import AlreadyExists, DatalayerError, NotFound, OutcomeUnknown, PreconditionFailed, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def told(bucket: str, what: str, *, write: bool = False) -> Iterator[None]:
    """Errors of botocore inside the block, as the library's. ``write``: an answer that is lost leaves it unknown."""
    try:
        yield
    except ClientError as error:
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        raise of_code(
            str(error.response.get("Error", {}).get("Code", "")), status, bucket, what, write=write
        ) from error
    except (NoCredentialsError, PartialCredentialsError, ProfileNotFound) as error:
        raise PreconditionFailed(
            f"bucket {bucket!r} needs a login, and none was found",
            hint="put key and secret into the backend's url or password, or give the process a role or profile",
        ) from error
    except BotoConnectionError as error:  # none was made: nothing was sent
        raise Unavailable(
            f"the S3 server of bucket {bucket!r} cannot be reached ({what})",
            hint="bring it back, or correct the endpoint in the backend's url",
        ) from error
    except HTTPClientError as error:
        if write:
            raise _unknown(bucket, what) from error
        raise Unavailable(f"the S3 server of bucket {bucket!r} does not answer ({what})") from error
    except ResponseParserError as error:
        raise no_s3(bucket) from error
    except BotoCoreError as error:
        raise Unavailable(f"bucket {bucket!r}: {what} failed ({type(error).__name__})") from error


class BeyondEnd(PreconditionFailed):
    """An object has no byte of the range that was asked for."""


class Conflicting(Unavailable):
    """Another write of this very name was under way; S3 asks to send it once more."""


def _unknown(bucket: str, what: str) -> OutcomeUnknown:
    return OutcomeUnknown(f"the S3 server of bucket {bucket!r} did not confirm a write ({what})")


def of_code(code: str, status: int, bucket: str, what: str, *, write: bool = False) -> DatalayerError:
    """The error of an answer that S3 gave."""
    for codes, refusal in _REFUSALS:
        if code in codes:
            return refusal(bucket, what)
    if status == 403:
        return _denied(bucket, what)
    if status == 404:
        return _absent(bucket, what)
    if write and status >= 500 and status not in {501, 503}:
        return _unknown(bucket, what)
    if (status >= 500 and status != 501) or code in {"SlowDown", "RequestTimeout"}:
        return Unavailable(f"the S3 server of bucket {bucket!r} is overloaded or fails ({what}, {code or status})")
    return PreconditionFailed(f"the S3 server of bucket {bucket!r} refuses {what} ({code or status})")


def _absent(bucket: str, what: str) -> DatalayerError:
    return NotFound(f"{what} is not in bucket {bucket!r}")


def _taken(bucket: str, what: str) -> DatalayerError:
    return AlreadyExists(f"{what} exists already in bucket {bucket!r}")


def _beyond(bucket: str, what: str) -> DatalayerError:
    return BeyondEnd(f"{what} in bucket {bucket!r} ends before the range that was asked for")


def _conflicting(bucket: str, what: str) -> DatalayerError:
    return Conflicting(f"another write of {what} is under way in bucket {bucket!r}")


def no_bucket(bucket: str, _what: str = "") -> DatalayerError:
    """What is said of a bucket that does not exist."""
    return PreconditionFailed(
        f"the bucket {bucket!r} does not exist", hint="make it, or correct the name in the backend's url"
    )


def no_s3(bucket: str) -> DatalayerError:
    """What is said of an endpoint where something else answers."""
    return PreconditionFailed(
        f"what answers for bucket {bucket!r} does not speak S3", hint="correct the endpoint in the backend's url"
    )


def _skewed(bucket: str, _what: str) -> DatalayerError:
    return PreconditionFailed(
        f"the clock of this machine and that of the S3 server of bucket {bucket!r} differ by too much",
        hint="let both follow a time server (NTP)",
    )


def _no_login(bucket: str, _what: str) -> DatalayerError:
    return PreconditionFailed(
        f"the S3 server of bucket {bucket!r} refuses the login", hint="correct key, secret or region of the backend"
    )


def _denied(bucket: str, what: str) -> DatalayerError:
    return PreconditionFailed(
        f"the login may not do this in bucket {bucket!r}: {what}",
        hint="allow it s3:GetObject, s3:PutObject, s3:DeleteObject, s3:AbortMultipartUpload, s3:ListBucket and "
        "s3:ListBucketMultipartUploads there",
    )


def _elsewhere(bucket: str, _what: str) -> DatalayerError:
    return PreconditionFailed(
        f"the bucket {bucket!r} is in another region", hint="name it in the backend's url: ?region=..."
    )


_REFUSALS: Final[tuple[tuple[frozenset[str], Callable[[str, str], DatalayerError]], ...]] = (
    (frozenset({"NoSuchKey", "NotFound", "404"}), _absent),
    (frozenset({"NoSuchBucket"}), no_bucket),
    (frozenset({"PreconditionFailed", "412"}), _taken),
    (frozenset({"InvalidRange", "416"}), _beyond),
    (frozenset({"ConditionalRequestConflict", "OperationAborted"}), _conflicting),
    (frozenset({"RequestTimeTooSkewed", "RequestExpired"}), _skewed),
    (frozenset({"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken", "401"}), _no_login),
    (frozenset({"AccessDenied", "Forbidden", "403", "AllAccessDisabled", "AccountProblem"}), _denied),
    (frozenset({"PermanentRedirect", "301", "AuthorizationHeaderMalformed"}), _elsewhere),
)
