"""Where domains go that a configuration need not name, and the stages of a move without a hold."""

from pathlib import Path

import pytest

from datalayer.domains.movement import MOVEMENTS, Movement, movement_of
from datalayer.errors import InvalidArgument
from datalayer.migrators.plan import Stage, Standing, Until, next_stage, next_stage_back, stages_to
from datalayer.routing.route import Phase
from datalayer.settings import SettingsError, parse_settings

SQLITE = {"backends": {"main": {"url": "sqlite:///here/main.sqlite"}}}
NOTHING = frozenset[str]()


def test_presence_is_in_the_memory_of_a_process_and_media_beside_the_file_unless_routed() -> None:
    settings = parse_settings(SQLITE, directory=Path("/app"))
    assert settings.backend_of("presence").scheme == settings.backend_of("typing").scheme == "memory"
    media = settings.backend_of("media").url
    assert media is not None
    assert media.path == Path("/app/here/media")
    assert set(settings.backends) == {"main"}
    assert set(settings.all_backends(MOVEMENTS)) == {"main", "memory", "files"}


def test_typing_follows_the_route_of_presence() -> None:
    backends = {**SQLITE["backends"], "redis": {"url": "redis://h/0"}}
    settings = parse_settings({"backends": backends, "routes": {"presence": "redis"}}, directory=Path("/app"))
    assert settings.backend_of("typing").name == "redis"


def test_media_without_a_folder_of_their_own_are_beside_no_server() -> None:
    backends = {"one": {"url": "postgresql://h/a"}, "two": {"url": "postgresql://h/b"}}
    document = {"backends": backends, "control": {"url": "postgresql://h/a"}}
    with pytest.raises(SettingsError, match=r"routes\.media"):
        parse_settings(document).backend_of("media")


def test_without_a_hold_what_is_verified_flips_and_comes_back_in_one_step() -> None:
    there = stages_to(Standing(Phase.SOURCE, NOTHING), Until.COMPLETE, held=False)
    assert there == [Stage.START, Stage.BACKFILL, Stage.VERIFY, Stage.FLIP, Stage.COMPLETE]
    verified = Standing(Phase.DUAL, frozenset({"backfilled", "verified"}))
    assert next_stage(verified, Until.ARMED, held=False) is None
    assert next_stage_back(Standing(Phase.TARGET, NOTHING), held=False) is Stage.FLIP
    assert next_stage_back(Standing(Phase.TARGET, NOTHING)) is Stage.ARM


def test_a_slot_group_moves_as_its_domain_does_and_no_domain_not_at_all() -> None:
    assert movement_of("users/7/0-63") is Movement.RECORDS
    with pytest.raises(InvalidArgument, match="is no domain"):
        movement_of("userz")
