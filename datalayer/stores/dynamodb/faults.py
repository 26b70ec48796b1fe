"""botocore's errors as the library's: one sentence each, that names the table and repeats nothing of theirs."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
)

from datalayer.errors import DatalayerError, OutcomeUnknown, Overloaded, PreconditionFailed, StaleRoute, Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

NO_CONDITION: Final = "ConditionalCheckFailedException"
_BUSY: Final = frozenset(
    {"ProvisionedThroughputExceededException", "ThrottlingException", "RequestLimitExceeded", "LimitExceededException"}
)
_DENIED: Final = frozenset(
    {
        "UnrecognizedClientException",
        "MissingAuthenticationTokenException",
        "ExpiredTokenException",
    }
)


class ConditionFailed(DatalayerError):
    """The condition of a write does not hold; nothing was written."""


class InUse(PreconditionFailed):
    """What is to be made is there, or in the making."""


class Invalid(PreconditionFailed):
    """The call does not fit what is there."""


@contextmanager
def told(where: str, *, write: bool) -> Iterator[None]:
    """Errors of botocore inside the block, as the library's."""
    try:
        yield
    except ClientError as error:
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        code = str(error.response.get("Error", {}).get("Code", ""))
        raise of_code(code, status, where, error.operation_name) from error
    except (NoCredentialsError, PartialCredentialsError, ProfileNotFound) as error:
        raise PreconditionFailed(
            f"{where} needs a login, and none was found",
            hint="put key and secret into the backend's url, or give the process a role or profile",
        ) from error
    except (EndpointConnectionError, ConnectTimeoutError) as error:
        raise Unavailable(f"{where} cannot be reached") from error
    except BotoCoreError as error:
        if write:
            raise OutcomeUnknown(f"{where} did not confirm the write") from error
        raise Unavailable(f"{where} did not answer") from error


def of_code(code: str, status: int, where: str, operation: str) -> DatalayerError:
    """The error of an answer that DynamoDB gave to a call of its API."""
    if code in {NO_CONDITION, "ResourceNotFoundException"}:
        return ConditionFailed() if code == NO_CONDITION else StaleRoute(f"{where} does not exist any more")
    if code in _BUSY:
        return Overloaded(f"{where} takes no more calls now ({code})", hint="raise its capacity")
    if status >= 500:
        return Unavailable(f"{where} fails ({code or status})")
    return _refused(code, status, where, operation)


def _refused(code: str, status: int, where: str, operation: str) -> PreconditionFailed:
    if code == "AccessDeniedException":
        return PreconditionFailed(
            f"{where} does not permit {operation} to the user or role of its url",
            hint=f"grant dynamodb:{operation} in its policy",
        )
    if code in {"InvalidSignatureException", "RequestExpired"}:
        return PreconditionFailed(
            f"{where} refuses the signature: the secret is wrong, or this machine's clock is off by minutes",
            hint="check the secret; let the machine follow a time server (NTP)",
        )
    if code in _DENIED or status == 403:
        return PreconditionFailed(f"{where} refuses the login ({code})", hint="check key, secret and policy")
    kind = {"ResourceInUseException": InUse, "ValidationException": Invalid}.get(code, PreconditionFailed)
    return kind(f"{where} refuses the call ({code or status})")
