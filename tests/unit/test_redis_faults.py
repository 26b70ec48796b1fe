"""Redis' answers as the library's errors: by their code, and without what they repeat of the command."""

import pytest
from redis.exceptions import ResponseError

from datalayer.stores.redis.faults import Refused, refused


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        # as the driver gives it: it takes ERR off
        ("unknown command 'XSET', with args beginning with: 'hunter2' ", "ERR"),
        ("hunter2 is what a script says", "ERR"),
        ("WRONGTYPE Operation against a key holding the wrong kind of value: hunter2", "WRONGTYPE"),
        ("STALE no such place", "STALE"),
        ("Error running script (call to f_ab): @user_script: 1: -STALE no such hunter2", "STALE"),
    ],
)
def test_what_an_answer_repeats_of_the_command_is_not_told(answer: str, code: str) -> None:
    error = refused(ResponseError(answer), "backend cache")
    assert isinstance(error, Refused)
    assert error.message == f"backend cache refuses the command ({code})"
