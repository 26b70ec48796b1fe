"""The driver's errors as the library's: class, outcome, and what may be said."""

import traceback

import cassandra as driver
import pytest
from cassandra.cluster import NoHostAvailable
from cassandra.connection import ConnectionShutdown
from cassandra.protocol import IsBootstrappingErrorMessage, OverloadedErrorMessage, ServerError

from datalayer.errors import (
    DatalayerError,
    DeadlineExceeded,
    Outcome,
    OutcomeUnknown,
    Overloaded,
    PreconditionFailed,
    StaleRoute,
    Unavailable,
)
from datalayer.stores.cassandra.failures import Refused, translate

SECRET = "s3cr3t-p4ss"
LOGIN = driver.AuthenticationFailed(f"Failed to authenticate to 10.0.0.1: bad credentials for app:{SECRET}")
_NO_TABLE = 'Error from server: code=2200 [Invalid query] message="table messages_7 does not exist"'
_CASES: list[tuple[BaseException, type[DatalayerError], type[DatalayerError]]] = [
    # error, as a write's, as a read's
    (
        driver.WriteTimeout("late", write_type=0, required_responses=2, received_responses=1),
        OutcomeUnknown,
        Unavailable,
    ),
    (driver.WriteFailure("bad", write_type=0, required_responses=2, received_responses=1), OutcomeUnknown, Unavailable),
    (driver.ReadTimeout("late", required_responses=2, received_responses=1), OutcomeUnknown, DeadlineExceeded),
    (driver.ReadFailure("bad", required_responses=2, received_responses=1), OutcomeUnknown, Unavailable),
    (driver.OperationTimedOut({"10.0.0.1": "Client request timeout"}, "10.0.0.1"), OutcomeUnknown, DeadlineExceeded),
    (ConnectionShutdown("Connection to 10.0.0.1 was closed"), OutcomeUnknown, Unavailable),
    (ServerError(0, "java.lang.RuntimeException", {}), OutcomeUnknown, Unavailable),
    (OverloadedErrorMessage(0x1001, "too many hints", {}), OutcomeUnknown, Overloaded),
    (driver.Unavailable("few", consistency=6, required_replicas=2, alive_replicas=1), Unavailable, Unavailable),
    (NoHostAvailable("none", {}), Unavailable, Unavailable),
    (
        NoHostAvailable("none", {"10.0.0.1": ConnectionRefusedError(111, "Connection refused")}),
        Unavailable,
        Unavailable,
    ),
    (IsBootstrappingErrorMessage(0x1002, "starting", {}), Unavailable, Unavailable),
    (driver.UnresolvableContactPoints({}), Unavailable, Unavailable),
    (driver.InvalidRequest(_NO_TABLE), StaleRoute, StaleRoute),
    (driver.InvalidRequest("unconfigured table messages_7"), StaleRoute, StaleRoute),
    (driver.InvalidRequest("Rejected an oversized mutation"), Refused, Refused),
    (driver.Unauthorized("User app has no MODIFY permission"), PreconditionFailed, PreconditionFailed),
    (LOGIN, PreconditionFailed, PreconditionFailed),
    (NoHostAvailable("none", {"10.0.0.1": LOGIN}), PreconditionFailed, PreconditionFailed),
    (driver.DriverException("something new"), OutcomeUnknown, Unavailable),
]


@pytest.mark.parametrize(("error", "as_write", "as_read"), _CASES, ids=lambda one: type(one).__name__[:30])
def test_what_is_known_of_the_effect_decides_the_class(
    error: BaseException, as_write: type[DatalayerError], as_read: type[DatalayerError]
) -> None:
    written = translate(error, "backend c", write=True)
    read = translate(error, "backend c", write=False)
    assert (type(written), type(read)) == (as_write, as_read)
    assert read.outcome is Outcome.NOT_APPLIED
    assert "\n" not in written.message
    assert "backend c" in written.message


def test_a_refused_login_shows_no_secret_anywhere() -> None:
    for error in (LOGIN, NoHostAvailable("none", {"10.0.0.1": LOGIN})):
        told = translate(error, "backend c", write=False)
        shown = [str(told), repr(told), *traceback.format_exception(told)]
        assert SECRET in str(error)  # the control: the driver's error does show it
        assert not any(SECRET in text for text in shown)


def test_other_errors_keep_the_driver_s_as_their_cause() -> None:
    error = ConnectionShutdown("Connection to 10.0.0.1 was closed")
    assert translate(error, "backend c", write=True).__cause__ is error
