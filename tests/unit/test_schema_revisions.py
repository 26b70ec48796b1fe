"""The revisions of the SQL schema lead to the tables that the stores expect."""

import sqlite3
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from datalayer.cli.app import app
from datalayer.cli.running import Stop
from datalayer.clock import SystemClock
from datalayer.errors import ConfigurationError, MissingDependencyError, PreconditionFailed, SchemaAhead, SchemaBehind
from datalayer.migrators.schema_plan import check_cql, check_plan, load_revisions, plan
from datalayer.migrators.schema_upgrade import Upgrade, UpgradeOptions
from datalayer.migrators.schemas import SchemaState, inspect_schemas
from datalayer.schemas import history, metadata, shapes
from datalayer.schemas.history import History
from datalayer.schemas.metadata import schema_log_table, serving_tables, sqlite_tables
from datalayer.schemas.render import VERSIONS, Revisions
from datalayer.schemas.shapes import differences, expected
from datalayer.settings import Settings, parse_settings
from datalayer.stores.sql.statement import create_table
from datalayer.stores.sql.texts import once
from datalayer.stores.sqlite.backend import SqliteBackend

CLOCK = SystemClock()
ADDS = '''"""Users have a country."""
import sqlalchemy as sa
from alembic import op
from datalayer.schemas.steps import build_index
revision, down_revision, branch_labels, depends_on = "0903_pre", "0007_pre", None, None
def upgrade():
    pass
def upgrade_place(base, table):
    if base == "users":
        column = sa.Column("country", sa.Text, nullable=False, server_default="")
        op.add_column(table, column, if_not_exists=True)
        build_index(table, "country")
'''
DROPS = '''"""Users have no country."""
from alembic import op
from datalayer.schemas.steps import drop_index
revision, down_revision, branch_labels, depends_on = "0904_post", None, ("post",), None
def upgrade():
    pass
def upgrade_place(base, table):
    if base == "users":
        drop_index(table, "country")
        op.drop_column(table, "country", if_exists=True)
'''


def one_file(path: Path) -> Settings:
    return parse_settings({"backends": {"main": {"url": f"sqlite:///{path}"}}})


async def upgraded(settings: Settings, *locations: Path, **options: Any) -> list[SchemaState]:
    return await Upgrade(settings, CLOCK, Revisions(*locations), Stop(), UpgradeOptions(**options)).run()


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[SqliteBackend]:
    backend = SqliteBackend("main", path, clock=CLOCK)
    try:
        yield backend
    finally:
        await backend.close()


def rows(path: Path, sql: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path)) as file, file:
        return file.execute(sql).fetchall()


def shape(path: Path) -> set[tuple[str, ...]]:
    """Tables, columns, types, defaults and keys of a file."""
    tables = [name for (name,) in rows(path, "SELECT name FROM sqlite_master WHERE type = 'table'")]
    columns = {(table, *map(str, row)) for table in tables for row in rows(path, f"PRAGMA table_info({table})")}
    return columns | {(f"index {row[0]}",) for row in rows(path, "SELECT name FROM sqlite_master")}


def old_file(path: Path) -> None:
    """A file that the first version of the library made."""
    with closing(sqlite3.connect(path)) as file:
        file.executescript((VERSIONS / "r0001_sqlite.sql").read_text())
        file.executescript(
            "CREATE TABLE datalayer_schema (version_num VARCHAR(32) NOT NULL, PRIMARY KEY (version_num));"
            "INSERT INTO datalayer_schema VALUES ('0001');"
        )


@pytest.fixture
def revisions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of two further revisions, known to this version: 0903_pre adds, 0904_post drops."""
    folder = tmp_path / "versions"
    folder.mkdir()
    (folder / "r0903.py").write_text(ADDS)
    (folder / "r0904.py").write_text(DROPS)
    later = History(pre=(*history.THIS.pre, "0903_pre"), post=("0904_post",), needed=history.THIS.needed)
    monkeypatch.setattr(history, "THIS", later)
    return folder


async def test_the_revisions_and_the_backend_make_the_same_schema(tmp_path: Path) -> None:
    by_revisions, by_backend = tmp_path / "a" / "main.sqlite", tmp_path / "b.sqlite"
    for _ in range(2):
        states = await upgraded(one_file(by_revisions))
        assert {state.state for state in states} == {"ready"}, states
    async with opened(by_backend) as backend:
        await backend.ensure_schema(create=True)
    assert shape(by_revisions) == shape(by_backend)
    assert rows(by_revisions, "SELECT * FROM datalayer_schema") == rows(by_backend, "SELECT * FROM datalayer_schema")
    logged = rows(by_revisions, "SELECT revision FROM datalayer_schema_log")
    assert logged == [("0002_pre",), ("0003_pre",), ("0004_pre",), ("0005_pre",), ("0006_pre",), ("0007_pre",)], (
        "what ran before there was a log is not in it"
    )
    async with opened(by_revisions) as backend:
        await backend.ensure_schema(create=False)


async def test_a_file_of_the_first_version_is_refused_until_it_is_brought_up_to_date(tmp_path: Path) -> None:
    path = tmp_path / "main.sqlite"
    old_file(path)
    async with opened(path) as backend:
        with pytest.raises(SchemaBehind, match="0001, not 0007_pre"):
            await backend.ensure_schema(create=True)
    settings = one_file(path)
    state = (await inspect_schemas(settings, CLOCK, only="main"))[0]
    assert (state.state, state.revision) == ("behind", "0001")
    done = await upgraded(settings, only="main")
    assert [(one.state, one.revision, one.done) for one in done] == [
        ("ready", "0007_pre", ("0002_pre", "0003_pre", "0004_pre", "0005_pre", "0006_pre", "0007_pre"))
    ]
    assert (await upgraded(settings, only="main"))[0].done == ()
    async with opened(path) as backend:
        await backend.ensure_schema(create=False)


async def test_pre_reaches_every_place_and_post_takes_it_away_again(tmp_path: Path, revisions: Path) -> None:
    path = tmp_path / "main.sqlite"
    old_file(path)
    async with opened(path) as backend:
        for attempt in (7, 1_000_028_672):
            await backend.store("users", attempt).create()
    rows(path, "CREATE TABLE users_2024 (id INTEGER PRIMARY KEY, name TEXT)")
    settings = one_file(path)

    def with_country() -> set[str]:
        tables = [str(name) for (name,) in rows(path, "SELECT name FROM sqlite_master WHERE name LIKE 'users%'")]
        return {name for name in tables if any(row[1] == "country" for row in rows(path, f"PRAGMA table_info({name})"))}

    done = await upgraded(settings, revisions, only="main", phase="pre")
    assert done[0].done == ("0002_pre", "0003_pre", "0004_pre", "0005_pre", "0006_pre", "0007_pre", "0903_pre")
    ours = {"users", "users_7", "users_1000028672"}
    indexes = {f"{name}_country" for name in ours}
    assert with_country() - indexes == ours
    found = {str(name) for (name,) in rows(path, "SELECT name FROM sqlite_master WHERE type = 'index'")}
    assert indexes <= found
    assert {str(one.what) for one in done[0].drift} == {
        "column country is unexpected",
        *(f"index {name} on (country) is unexpected" for name in indexes),
    }, "this version does not know what the next one added, and lives with it"
    targets = rows(path, "SELECT target FROM datalayer_schema_log WHERE revision = '0903_pre'")
    assert {target for (target,) in targets} == ours
    await upgraded(settings, revisions, only="main", phase="post")
    assert with_country() == set()
    assert sorted(rows(path, "SELECT version_num FROM datalayer_schema")) == [("0903_pre",), ("0904_post",)]


async def test_a_post_revision_waits_for_the_pre_ones_before_it(tmp_path: Path, revisions: Path) -> None:
    path = tmp_path / "main.sqlite"
    old_file(path)
    state = (await upgraded(one_file(path), revisions, only="main", phase="post"))[0]
    assert state.state == "failed"
    assert (
        "0002_pre, 0003_pre, 0004_pre, 0005_pre, 0006_pre, 0007_pre, 0903_pre must run before 0904_post" in state.detail
    )


async def test_a_place_that_older_code_made_afterwards_is_brought_in_step(
    tmp_path: Path, revisions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "main.sqlite"
    settings = one_file(path)
    old_file(path)
    await upgraded(settings, revisions, only="main", phase="pre")
    async with opened(path) as backend:
        await backend.store("users", 8).create()
    old: Any = metadata.users_table
    make = metadata.place_table

    def with_country(attempt: int = 0) -> Any:
        import sqlalchemy as sa  # noqa: PLC0415

        table = old.__wrapped__(attempt)
        table.append_column(sa.Column("country", sa.Text, nullable=False, server_default=""))
        sa.Index(f"{table.name}_country", table.c.country)
        return table

    once.cache_clear()
    monkeypatch.setattr(metadata, "users_table", with_country)
    monkeypatch.setattr(
        metadata, "place_table", lambda base, n=0: with_country(n) if base == "users" else make(base, n)
    )
    state = (await inspect_schemas(settings, CLOCK, only="main"))[0]
    assert state.state == "drifted"
    assert {str(one) for one in state.drift} == {
        "users_8: column country is missing",
        "users_8: index users_8_country is missing",
    }
    state = (await upgraded(settings, revisions, only="main", phase="pre"))[0]
    assert (state.state, state.done) == ("ready", ("0004_pre users_8", "0903_pre users_8"))
    once.cache_clear()


async def test_a_table_that_somebody_dropped_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "main.sqlite"
    await upgraded(one_file(path), only="main")
    rows(path, "DROP TABLE claims")
    state = (await upgraded(one_file(path), only="main"))[0]
    assert (state.state, state.done) == ("ready", ("0001",))


# --- which versions of the library can serve what ----------------------------------------------------------------------

NOW = History(pre=("0001", "0003_pre"), post=("0002_post",), needed="0003_pre")


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        ({"0003_pre"}, None),
        ({"0003_pre", "0002_post"}, None),
        ({"0006_pre"}, None),
        ({"0006_pre", "0002_post"}, None),
        ({"0001"}, SchemaBehind),
        (set(), SchemaBehind),
        ({"0003_pre", "0004_post"}, SchemaAhead),
        ({"0007_pre", "0006_post"}, SchemaAhead),
        ({"something else"}, SchemaAhead),
        ({"9999"}, SchemaAhead),
    ],
)
def test_what_only_adds_is_lived_with_and_what_takes_away_is_not(
    found: set[str], verdict: type[Exception] | None
) -> None:
    if verdict is None:
        NOW.check(found, "a database")
        return
    with pytest.raises(verdict):
        NOW.check(found, "a database")


def test_a_row_stands_for_all_before_it_in_its_line() -> None:
    assert NOW.applied({"0003_pre"}) == ("0001", "0003_pre")
    assert NOW.pending({"0003_pre"}) == ("0002_post",)
    assert NOW.pending({"0001", "0002_post"}) == ("0003_pre",)
    assert NOW.pending((), "pre") == ("0001", "0003_pre")
    assert NOW.heads == ("0003_pre", "0002_post")


async def test_a_schema_that_this_version_cannot_serve_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "main.sqlite"
    old_file(path)
    monkeypatch.setattr(history, "THIS", replace(history.THIS, needed="0002_pre"))
    async with opened(path) as backend:
        with pytest.raises(SchemaBehind, match="0001, not 0002_pre"):
            await backend.ensure_schema(create=True)
        rows(path, "INSERT INTO datalayer_schema VALUES ('0002_pre'), ('0009_post')")
        with pytest.raises(SchemaAhead, match="0009_post"):
            await backend.ensure_schema(create=False)
    assert (await inspect_schemas(one_file(path), CLOCK, only="main"))[0].state == "ahead"
    assert (await upgraded(one_file(path), only="main"))[0].state == "ahead"


# --- the files ---------------------------------------------------------------------------------------------------------


def test_the_history_is_that_of_the_files() -> None:
    names = load_revisions().names
    assert names == tuple(sorted((*history.THIS.pre, *history.THIS.post), key=history.number_of))
    assert {path.name[1:5] for path in VERSIONS.glob("r[0-9]*.py")} == {name[:4] for name in names}
    assert history.THIS.needed in history.THIS.pre


@pytest.mark.parametrize("dialect", ["sqlite", "postgresql"])
def test_the_first_revision_made_what_an_application_needs(dialect: Any) -> None:
    # Frozen: a change of these tables is a further revision, and then this test compares with it applied.
    tables = [metadata.place_table(base) for base in ("messages", "users", "claims")]
    tables += [metadata.meta_table(), metadata.token_table(), *(sqlite_tables() if dialect == "sqlite" else ())]
    ddl = [text for table in tables for text in create_table(dialect, table)]
    recorded = (VERSIONS / f"r0001_{dialect}.sql").read_text().split(";\n")
    steps = load_revisions().scripts("0004_pre", dialect, {"users": ["users"]})[0].steps
    added = steps[-1].sql.removeprefix("ALTER TABLE users ADD COLUMN IF NOT EXISTS ")
    made = [" ".join(one.split()).replace(f" {added}, PRIMARY", " PRIMARY") for one in ddl]
    assert [" ".join(one.split()) for one in recorded if one.strip()] == made


@pytest.mark.parametrize("dialect", ["sqlite", "postgresql"])
def test_the_second_revision_makes_the_log(dialect: Any) -> None:
    steps = load_revisions().scripts("0002_pre", dialect, {})[0].steps
    assert " ".join(steps[-1].sql.split()) == " ".join(create_table(dialect, schema_log_table())[0].split())


@pytest.mark.parametrize("dialect", ["sqlite", "postgresql"])
def test_the_third_revision_makes_conversations_and_lists(dialect: Any) -> None:
    steps = load_revisions().scripts("0003_pre", dialect, {})[0].steps
    tables = [metadata.place_table(base) for base in ("conversations", "members", "listings")]
    ddl = [" ".join(text.split()) for table in tables for text in create_table(dialect, table)]
    assert [" ".join(step.sql.split()) for step in steps if step.sql.startswith("CREATE")] == ddl


@pytest.mark.parametrize("dialect", ["sqlite", "postgresql"])
def test_the_sixth_revision_makes_the_catalogue_of_media(dialect: Any) -> None:
    steps = load_revisions().scripts("0006_pre", dialect, {})[0].steps
    tables = [metadata.place_table(base) for base in ("media", "media_objects")]
    ddl = [" ".join(text.split()) for table in tables for text in create_table(dialect, table)]
    assert [" ".join(step.sql.split()) for step in steps if step.sql.startswith("CREATE")] == ddl


def test_our_own_revisions_pass_the_linter() -> None:
    planned = [*plan(load_revisions(), ["postgresql", "sqlite"]), check_cql()]
    assert [finding for one in planned for finding in one.findings] == []
    check_plan(planned)


async def test_a_revision_that_would_hurt_stops_an_upgrade_before_anything_is_touched(
    tmp_path: Path, revisions: Path
) -> None:
    path = tmp_path / "main.sqlite"
    (revisions / "r0903.py").write_text(ADDS.replace('server_default=""', 'server_default=sa.text("random()")'))
    with pytest.raises(PreconditionFailed, match="0903_pre would hurt: rewrite"):
        await upgraded(one_file(path), revisions)
    assert not path.exists()


def test_without_alembic_the_schema_tools_say_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: str) -> None:
        raise ModuleNotFoundError("No module named 'alembic'", name="alembic.operations")

    monkeypatch.setattr("datalayer.migrators.schema_plan.importlib", SimpleNamespace(import_module=missing))
    with pytest.raises(MissingDependencyError, match="pip install alembic"):
        load_revisions()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"only": "nope"}, "'nope' is not configured"),
        ({"canary": "nope"}, "--canary 'nope' is none of them"),
        ({"parallel": 0}, "--parallel 0 is outside"),
        ({"parallel": 65}, "--parallel 65 is outside"),
    ],
)
async def test_a_name_or_number_that_is_none_is_refused(tmp_path: Path, options: Any, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        await upgraded(one_file(tmp_path / "main.sqlite"), **options)


# --- the order of databases ----------------------------------------------------------------------------------------------


def three_files(folder: Path) -> Settings:
    members = {name: f"sqlite:///{folder / name}.sqlite" for name in ("s0", "s1", "s2")}
    backends = {"main": {"url": f"sqlite:///{folder / 'main.sqlite'}"}, "shards": {"members": members}}
    return parse_settings({"backends": backends, "routes": {"users": "shards"}})


class Order:
    """Failpoints that write down in which order databases were begun."""

    def __init__(self, then: Callable[[str], Coroutine[Any, Any, None]] | None = None) -> None:
        self.names: list[str] = []

    async def reach(self, name: str) -> None:
        if name.count(".") == 2:
            self.names.append(name.split(".")[1])


async def begun(settings: Settings, **options: Any) -> tuple[list[str], dict[str, SchemaState]]:
    order = Order()
    states = await Upgrade(settings, CLOCK, Revisions(), order, UpgradeOptions(**options)).run()
    return order.names, {state.name: state for state in states}


async def test_every_member_of_a_sharded_backend_is_a_database(tmp_path: Path) -> None:
    settings = three_files(tmp_path)
    names, states = await begun(settings)
    assert sorted(names) == ["(control)", "main", "shards/s0", "shards/s1", "shards/s2"]
    assert {state.state for state in states.values()} == {"ready"}
    assert list((await begun(settings, only="shards"))[1]) == ["shards/s0", "shards/s1", "shards/s2"]
    assert list((await begun(settings, only="shards/s1"))[1]) == ["shards/s1"]
    seen = [(state.name, state.state) for state in await inspect_schemas(settings, CLOCK)]
    assert seen == [(name, "ready") for name in ("main", "shards/s0", "shards/s1", "shards/s2", "(control)")]


async def test_the_canary_goes_first_and_stops_the_others_when_it_fails(tmp_path: Path) -> None:
    settings = three_files(tmp_path)
    names, _ = await begun(settings, canary="shards/s2")
    assert names[0] == "shards/s2"
    rows(tmp_path / "s2.sqlite", "INSERT INTO datalayer_schema VALUES ('0009_post')")
    names, states = await begun(settings, canary="shards/s2")
    assert names == ["shards/s2"]
    assert states["shards/s2"].state == "ahead"
    assert states["main"].state == "waiting"
    assert "canary shards/s2 is ahead" in states["main"].detail


async def test_an_upgrade_that_is_told_to_stop_stops_between_two_databases(tmp_path: Path) -> None:
    from datalayer.cli.exits import Stopped  # noqa: PLC0415

    stop = Stop()
    stop.requested = True
    with pytest.raises(Stopped):
        await Upgrade(three_files(tmp_path), CLOCK, Revisions(), stop).run()


# --- the command ---


def test_the_exit_code_says_the_gravest_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, revisions: Path) -> None:
    path = tmp_path / "main.sqlite"
    (tmp_path / "datalayer.toml").write_text(f'[backends.main]\nurl = "sqlite:///{path}"\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datalayer.cli.schema.load_revisions", lambda: Revisions(revisions))

    def ends(words: str, code: int, *says: str) -> None:
        ended = CliRunner().invoke(app, ["schema", *words.split()])
        assert ended.exit_code == code, ended.output
        assert [one for one in says if one not in ended.output] == []

    old_file(path)
    ends("status main", 3, "behind", "at revision 0001, not 0007_pre", "next: datalayer schema upgrade")
    ends(
        "upgrade main",
        0,
        "0002_pre, 0003_pre, 0004_pre, 0005_pre, 0006_pre, 0007_pre, 0903_pre",
        "0904_post: once no process of an older version runs",
    )
    ends("upgrade main --phase all", 0, "0903_pre, 0904_post")
    ends("status main", 0, "ready")
    rows(path, "ALTER TABLE users ADD COLUMN shoe TEXT")
    ends("status main", 0, "main: users: column shoe is unexpected")
    rows(path, "ALTER TABLE users DROP COLUMN display_name")
    ends("status main", 4, "drifted", "main: users: column display_name is missing")
    ends("upgrade main", 4, "drifted")
    rows(path, "INSERT INTO datalayer_schema VALUES ('0909_post')")
    ends("status main", 3, "ahead", "0909_post")
    ends("upgrade main", 3, "ahead")
    ends("upgrade main --canary nope", 2, "'nope' is none of them")
    ends("upgrade --phase nope", 2)


async def test_a_new_database_gets_what_was_contracted_long_ago_at_once(tmp_path: Path, revisions: Path) -> None:
    path = tmp_path / "main.sqlite"
    state = (await upgraded(one_file(path), revisions, only="main", phase="pre"))[0]
    assert state.revision == "0903_pre, 0904_post"
    assert "country" not in str(shape(path))


# --- drift ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "told", "harmful"),
    [
        ("ALTER TABLE users DROP COLUMN display_name", "users: column display_name is missing", True),
        ("ALTER TABLE users ADD COLUMN shoe TEXT", "users: column shoe is unexpected", False),
        ("CREATE INDEX users_name ON users (username)", "users: index users_name on (username) is unexpected", False),
        (
            "CREATE UNIQUE INDEX users_mail ON users (email)",
            "users: unique index users_mail on (email) is unexpected",
            True,
        ),
        ("DROP TABLE claims", "claims: the table is missing", True),
        (
            "DROP TABLE datalayer_token; CREATE TABLE datalayer_token (domain TEXT, migration BLOB NOT NULL)",
            "datalayer_token: column migration is of type blob, not text",
            True,
        ),
    ],
)
async def test_each_kind_of_drift_is_named(tmp_path: Path, change: str, told: str, harmful: bool) -> None:
    path = tmp_path / "main.sqlite"
    await upgraded(one_file(path), only="main")
    with closing(sqlite3.connect(path)) as file:
        file.executescript(change)
    state = (await inspect_schemas(one_file(path), CLOCK, only="main"))[0]
    assert (told, harmful) in [(str(one), one.harmful) for one in state.drift]
    assert state.state == ("drifted" if harmful else "ready")


def test_a_shape_differs_from_itself_in_nothing() -> None:
    for dialect in ("sqlite", "postgresql"):
        for table in (*serving_tables(), schema_log_table()):
            wanted = expected(table, dialect)
            assert list(differences(table.name, wanted, wanted)) == []


def test_the_name_of_a_place_is_read_as_it_is_written() -> None:
    for base in metadata.PLACES:
        for attempt in (0, 7, 1_000_028_672):
            assert shapes.attempt_of(metadata.relation(base, attempt)) == (base, attempt)
    assert shapes.places_among({"users_007": frozenset(), "users": frozenset({"id"})}) == {
        base: [] for base in metadata.PLACES
    }
