"""What callers see of sessions, on the embedded default."""

import asyncio
import base64
import logging
import sqlite3
import traceback
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from datalayer.clock import SystemClock
from datalayer.domains.record import EXPIRY_GRACE_US
from datalayer.domains.sessions import CUT_LEAD_US, LIFETIME_MAX_US
from datalayer.errors import DatalayerError, InvalidArgument
from datalayer.layer import DataLayer, LayerOptions
from datalayer.repositories.sessions import parse_token
from datalayer.routing import purger
from datalayer.settings import Settings, parse_settings
from datalayer.types import Session

ANN = UUID(int=7)
HOUR_S = 3600


class Clock(SystemClock):
    """A clock that a test may set forward."""

    ahead_us = 0

    def now_us(self) -> int:
        return super().now_us() + self.ahead_us


def _settings(folder: Path) -> Settings:
    here = f"here{uuid4().hex[:8]}"
    backends = {"main": {"url": f"sqlite:///{folder}/main.sqlite"}, here: {"url": "memory://"}}
    return parse_settings({"backends": backends, "routes": {"presence": here}}, directory=folder)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def layer(tmp_path: Path, clock: Clock) -> AsyncIterator[DataLayer]:
    options = LayerOptions(project=False, purge=False)
    async with DataLayer.open(_settings(tmp_path), options=options, clock=clock) as layer:
        yield layer


async def test_a_session_expires_unless_it_is_touched_and_ends_whatever_happens(layer: DataLayer, clock: Clock) -> None:
    made = await layer.sessions.create(ANN, ttl=HOUR_S, lifetime=3 * HOUR_S, attributes={"device": "web"})
    token = _token(made)
    assert (made.expires_at - made.created_at).total_seconds() == HOUR_S
    clock.ahead_us += 50 * 60 * 1_000_000
    found = await layer.sessions.touch(token, ttl=HOUR_S)
    assert found is not None
    assert found.expires_at > made.expires_at
    assert await layer.sessions.touch(token, ttl=1) == found, "a touch never shortens"
    clock.ahead_us += 50 * 60 * 1_000_000
    assert await layer.sessions.get(token) == found
    last = await layer.sessions.touch(token, ttl=100 * HOUR_S)
    assert last is not None
    assert last.expires_at == made.ends_at
    clock.ahead_us += 100 * 60 * 1_000_000
    assert await layer.sessions.get(token) is None
    assert await layer.sessions.touch(token) is None
    assert await layer.sessions.of_user(ANN) == ()


async def test_revoked_sessions_are_refused_one_by_one_and_all_at_once(layer: DataLayer) -> None:
    first, second, third = [await layer.sessions.create(ANN) for _ in range(3)]
    other = await layer.sessions.create(uuid4())
    await layer.sessions.revoke(_token(first))
    await layer.sessions.revoke(_token(first))
    assert {one.id for one in await layer.sessions.of_user(ANN)} == {second.id, third.id}
    await layer.sessions.revoke_session(ANN, second.id)
    await layer.sessions.revoke_session(str(ANN), str(uuid4()))
    assert [await layer.sessions.get(_token(one)) for one in (first, second)] == [None, None]
    await layer.sessions.revoke_all(ANN)
    assert await layer.sessions.get(_token(third)) is None
    assert await layer.sessions.touch(_token(third)) is None
    assert await layer.sessions.get(_token(other)) is not None
    again = await layer.sessions.create(ANN)
    assert await layer.sessions.get(_token(again)) is not None
    await layer.sessions.revoke_all(ANN)
    assert await layer.sessions.get(_token(again)) is None


async def test_a_process_whose_clock_is_ahead_keeps_no_session_alive(layer: DataLayer, clock: Clock) -> None:
    clock.ahead_us = CUT_LEAD_US - 1_000_000
    made = await layer.sessions.create(ANN)
    clock.ahead_us = 0
    await layer.sessions.revoke_all(ANN)
    assert await layer.sessions.get(_token(made)) is None
    later = await layer.sessions.create(ANN)
    assert await layer.sessions.get(_token(later)) is not None


async def test_text_that_is_no_token_is_nobody(layer: DataLayer) -> None:
    token = _token(await layer.sessions.create(ANN))
    raw = base64.urlsafe_b64decode(token)
    other_user = base64.urlsafe_b64encode(uuid4().bytes + raw[16:]).decode()
    other_secret = base64.urlsafe_b64encode(raw[:-1] + bytes([raw[-1] ^ 1])).decode()
    for text in ("", "x", token[:-1], token + "A", f" {token}", token[:-1] + "=", token[:-1] + "\n", "é" * 64):
        assert parse_token(text) is None
        with pytest.raises(InvalidArgument, match="malformed"):
            await layer.sessions.revoke(text)
    things: list[Any] = ["", "x", token[:-1], other_user, other_secret, None, 5, token.encode()]
    for thing in things:
        assert await layer.sessions.get(thing) is None
        assert await layer.sessions.touch(thing) is None
    await layer.sessions.revoke(other_secret)
    assert await layer.sessions.get(token) is not None


async def test_a_token_is_in_no_error_log_repr_or_file(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[str] = []
    with caplog.at_level(logging.DEBUG):
        async with DataLayer.open(_settings(tmp_path), clock=clock) as layer:
            made = await layer.sessions.create(ANN)
            token = _token(made)
            secret = base64.urlsafe_b64decode(token)[16:]
            told += [repr(made), str(made), f"{made}"]
            for call in (
                layer.sessions.revoke(token[:-2]),
                layer.sessions.revoke_all(token),
                layer.sessions.create(token),
                layer.sessions.of_user(token),
                layer.sessions.revoke_session(ANN, token),
                layer.sessions.touch(token, ttl=-1),
                layer.sessions.get(token, timeout=-1),
            ):
                with pytest.raises(DatalayerError) as error:
                    await call
                told += traceback.format_exception(error.value)
        with pytest.raises(DatalayerError) as error:
            await layer.sessions.get(token)
        told += traceback.format_exception(error.value)
    text = "\n".join((*told, caplog.text))
    assert token[30:50] not in text
    stored = b"".join(path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file())
    assert made.id.bytes in stored
    assert secret not in stored
    assert token.encode() not in stored


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), True, "5", LIFETIME_MAX_US / 1e6 + 1])
async def test_times_are_positive_and_bounded(layer: DataLayer, seconds: float) -> None:
    with pytest.raises(InvalidArgument, match="ttl is"):
        await layer.sessions.create(ANN, ttl=seconds)
    with pytest.raises(InvalidArgument, match="lifetime is"):
        await layer.sessions.create(ANN, lifetime=seconds)


async def test_what_expired_long_ago_is_purged_and_nothing_else(layer: DataLayer, clock: Clock, tmp_path: Path) -> None:
    for number in range(5):
        made = await layer.sessions.create(ANN, ttl=HOUR_S, lifetime=2 * HOUR_S)
        if number < 2:
            await layer.sessions.revoke(_token(made))
    kept = await layer.sessions.create(ANN, ttl=90 * HOUR_S)
    await layer.sessions.revoke_all(uuid4())
    assert await layer.purger.purge() == 0
    clock.ahead_us = HOUR_S * 1_000_000 + EXPIRY_GRACE_US + 1_000_000
    assert await layer.purger.purge() == 3, "tombstones stay until the end of their sessions"
    clock.ahead_us += HOUR_S * 1_000_000
    assert await layer.purger.purge() == 2
    assert await layer.purger.purge() == 0
    assert await layer.sessions.get(_token(kept)) is not None
    with sqlite3.connect(tmp_path / "main.sqlite") as rows:
        assert rows.execute("SELECT count(*) FROM session_cuts").fetchall() == [(1,)]
    rows.close()


async def test_one_process_of_the_fleet_purges_by_itself(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = _settings(tmp_path)
    async with DataLayer.open(settings, clock=clock) as before:
        await before.sessions.create(ANN, ttl=HOUR_S)
    # Before anybody purges: a lease that was taken already would run out as well.
    clock.ahead_us = HOUR_S * 1_000_000 + EXPIRY_GRACE_US + 1_000_000
    monkeypatch.setattr(purger, "ROUND_S", 0.02)
    async with DataLayer.open(settings, clock=clock) as first, DataLayer.open(settings, clock=clock) as second:
        async with asyncio.timeout(10):
            while first.purger.taken + second.purger.taken < 1:
                await asyncio.sleep(0.01)
        holder = await first.control.holder(purger.LEASE)
        assert holder is not None
        assert holder[0] == (first if first.purger.taken else second).process.id
        assert (first.purger.errors, second.purger.errors) == (0, 0)


def _token(session: Session) -> str:
    assert session.token is not None
    return session.token
