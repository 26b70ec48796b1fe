"""layer.health(), while something changes."""

import dataclasses
from pathlib import Path

import pytest

from datalayer.clock import Deadline
from datalayer.layer import DataLayer
from datalayer.routing.route import Phase, Place
from datalayer.settings import parse_settings
from tests.unit.cli_world import fresh_world


async def test_a_cut_over_while_stores_are_asked_is_in_the_next_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The route of users changes to a backend that is not among those that were asked."""
    fresh_world(tmp_path, monkeypatch)
    settings = parse_settings({"backends": {"main": {"url": "memory://"}, "other": {"url": "memory://"}}})
    async with DataLayer.open(settings) as layer:
        router, main = layer.router("users"), layer.backends["main"]
        before = router.routing
        cut_over = dataclasses.replace(
            before, epoch=before.epoch + 1, phase=Phase.TARGET, source=Place("main"), target=Place("other", 1)
        )
        ping = main.ping

        async def slow(deadline: Deadline) -> None:
            await ping(deadline)
            router.adopt(dataclasses.replace(router.route, routing=cut_over))

        monkeypatch.setattr(main, "ping", slow)
        health = await layer.health()
        assert health["ready"]
        assert health["domains"]["users"] == {"phase": "source", "epoch": before.epoch, "backend": "main"}
        assert (await layer.health())["domains"]["users"]["backend"] == "other"
