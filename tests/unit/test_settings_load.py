"""Where settings come from, in which order, and what is said about mistakes."""

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest

from datalayer import settings as settings_module
from datalayer.settings import (
    BackendUrl,
    Host,
    Settings,
    SettingsError,
    describe,
    load_settings,
    parse_settings,
    render_default_toml,
)

SECRET = "hunter2"
MAIN = {"main": {"url": "postgresql://app@db/app"}}
DESIGN_EXAMPLE = """
[backends.main]
url = "postgresql://app@db/app"
replicas = ["postgresql://app@r1/app"]
pool_max = 100
[backends.cassandra]
url = "cassandra://c1,c2/chat?local_dc=dc1&replication=3"
[backends.shards]
members = { s0 = "postgresql://h0/app", s1 = "postgresql://h1/app" }
[backends.redis]
url = "redis://h/0"
[routes]
users = "shards"
messages = "main"
[control]
url = "postgresql://app@db/app"
"""


def load(directory: Path, text: str | None = None, /, **environ: str) -> Settings:
    if text is not None:
        (directory / "datalayer.toml").write_text(text)
    return load_settings(environ=environ, directory=directory)


def faults(document: dict[str, Any]) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        parse_settings(document)
    return [
        f"{fault.key} {fault.reason}" + (f" ({fault.way_out})" if fault.way_out else "")
        for fault in caught.value.faults
    ]


def refused(directory: Path, text: str | None = None, /, **environ: str) -> str:
    with pytest.raises(SettingsError) as caught:
        load(directory, text, **environ)
    return str(caught.value)


def test_a_whole_file(tmp_path: Path) -> None:
    settings = load(tmp_path, DESIGN_EXAMPLE)
    main, cassandra, shards = (settings.backends[name] for name in ("main", "cassandra", "shards"))
    assert main.url is not None
    assert (main.url.hosts, main.url.user, main.pool_max) == ((Host("db"),), "app", 100)
    assert [replica.hosts for replica in main.replicas] == [(Host("r1"),)]
    assert cassandra.url is not None
    assert cassandra.url.options == {"local_dc": "dc1", "replication": 3}
    assert (list(shards.members), shards.url, shards.scheme) == (["s0", "s1"], None, "postgresql")
    assert settings.control == main.url
    assert settings.backend_of("users") is shards
    assert settings.backend_of("messages") is main
    assert settings.backend_of("search") is main
    assert settings.embedded_directory is None
    assert settings.source == "datalayer.toml"


def test_values_are_frozen(tmp_path: Path) -> None:
    settings = load(tmp_path, DESIGN_EXAMPLE)
    with pytest.raises(AttributeError):
        settings.source = "other"  # type: ignore[misc]
    with pytest.raises(TypeError):
        settings.backends["new"] = settings.backends["main"]  # type: ignore[index]
    with pytest.raises(TypeError):
        settings.routes["users"] = "main"  # type: ignore[index]


def test_order_argument_then_variable_then_file_then_environment_then_embedded(tmp_path: Path) -> None:
    def file(name: str) -> str:
        path = tmp_path / f"{name}.toml"
        path.write_text(f'[backends.main]\nurl = "sqlite:///{name}.sqlite"\n')
        return str(path)

    def chosen(**arguments: Any) -> str:
        url = load_settings(directory=tmp_path, **arguments).backends["main"].url
        assert url is not None
        assert url.path is not None
        return url.path.name

    argument, variable = file("argument"), file("variable")
    env = {"DATALAYER_CONFIG": variable}
    assert chosen(environ={}) == "main.sqlite"
    only_environment = {"DATALAYER_BACKENDS__MAIN__URL": "sqlite:///environment.sqlite"}
    assert chosen(environ=only_environment) == "environment.sqlite"
    file("datalayer")
    assert chosen(environ={}) == "datalayer.sqlite"
    assert chosen(environ=env) == "variable.sqlite"
    assert chosen(path=argument, environ=env) == "argument.sqlite"


def test_relative_sqlite_paths_are_taken_from_the_file(tmp_path: Path) -> None:
    folder = tmp_path / "etc"
    folder.mkdir()
    (folder / "d.toml").write_text('[backends.main]\nurl = "sqlite:///a.sqlite"\n')
    settings = load_settings("etc/d.toml", environ={}, directory=tmp_path)
    assert settings.backends["main"].url == BackendUrl("sqlite", path=folder / "a.sqlite")
    assert settings.control == BackendUrl("sqlite", path=folder / "control.sqlite")


def test_embedded_default_warns_once_with_the_absolute_path(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = load(tmp_path)
    folder = tmp_path / "datalayer-data"
    assert settings.backends["main"].url == BackendUrl("sqlite", path=folder / "main.sqlite")
    assert settings.control == BackendUrl("sqlite", path=folder / "control.sqlite")
    assert settings.embedded_directory == folder
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert [str(folder) in record.getMessage() for record in warnings] == [True]
    assert list(tmp_path.iterdir()) == []


def test_a_configured_layer_does_not_warn(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    load(tmp_path, DESIGN_EXAMPLE)
    assert caplog.records == []


def test_embedded_never_refuses(tmp_path: Path) -> None:
    assert "DATALAYER_EMBEDDED=never" in refused(tmp_path, DATALAYER_EMBEDDED="never")
    assert "never" in refused(tmp_path, DATALAYER_EMBEDDED="no")
    load(tmp_path, DESIGN_EXAMPLE, DATALAYER_EMBEDDED="never")


def test_variables_overlay_a_file_key_by_key(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    settings = load(
        tmp_path,
        DESIGN_EXAMPLE + '[backends.shard-03]\nurl = "postgresql://h/app"\n',
        DATALAYER_BACKENDS__MAIN__PASSWORD_FILE=str(tmp_path / "secret"),
        DATALAYER_BACKENDS__MAIN__POOL_MAX="7",
        DATALAYER_BACKENDS__MAIN__REPLICAS="postgresql://r1/app  postgresql://r2/app",
        DATALAYER_BACKENDS__SHARD_03__URL="postgresql://other/app",
        DATALAYER_BACKENDS__SHARDS__MEMBERS__S2="postgresql://h2/app",
        DATALAYER_ROUTES__MEDIA="redis",
        DATALAYER_DEADLINES__DEFAULT_S="1.5",
        DATALAYER_TIER="check",
        UNRELATED__VARIABLE="1",
    )
    main = settings.backends["main"]
    assert main.url is not None
    assert (main.url.password, main.pool_max) == (SECRET, 7)
    assert [(url.hosts[0].name, url.password) for url in main.replicas] == [("r1", SECRET), ("r2", SECRET)]
    other = settings.backends["shard-03"].url
    assert other is not None
    assert other.hosts == (Host("other"),)
    assert list(settings.backends["shards"].members) == ["s0", "s1", "s2"]
    assert settings.backend_of("media").name == "redis"
    assert settings.deadlines.default_s == 1.5
    assert SECRET not in repr(settings) + str(describe(settings))


def test_a_password_file_may_be_named_in_the_file(tmp_path: Path) -> None:
    (tmp_path / "pw").write_text(SECRET)
    settings = load(tmp_path, '[backends.main]\nurl = "postgresql://a@h/d"\npassword_file = "pw"\n')
    url = settings.backends["main"].url
    assert url is not None
    assert url.password == SECRET
    said = refused(tmp_path, '[backends.main]\nurl = "postgresql://a@h/d"\npassword_file = "none"\n')
    assert (
        said
        == "datalayer.toml:3: backends.main.password_file comes from a file that cannot be read: No such file or directory"
    )


def test_secrets_of_every_source_stay_out_of_text_forms(tmp_path: Path) -> None:
    text = f'[backends.main]\nurl = "postgresql://app:{SECRET}@db/app?sslpassword={SECRET}"\n'
    settings = load(tmp_path, text, DATALAYER_CONTROL__URL=f"postgresql://c:{SECRET}@db/control")
    assert SECRET not in repr(settings) + str(settings) + json.dumps(describe(settings))
    assert str(settings.control) == "postgresql://c:***@db/control"


def test_places_name_line_or_variable(tmp_path: Path) -> None:
    settings = load(tmp_path, DESIGN_EXAMPLE, DATALAYER_ROUTES__USERS="main")
    assert settings.places(("backends", "main", "url")) == "datalayer.toml:3"
    assert settings.places(("backends", "shards", "members", "s1")) == "datalayer.toml:9"
    assert settings.places(("control", "url")) == "datalayer.toml:16"
    assert settings.places(("routes", "users")) == "DATALAYER_ROUTES__USERS"
    assert settings.places(("limits", "body_max_bytes")) is None


def test_a_value_of_several_lines_stands_where_it_begins(tmp_path: Path) -> None:
    text = '[backends.main]\nurl = "postgresql://a/b"\n\n# replicas\nreplicas = [\n  "postgresql://r1/b",\n  "x",\n]\n'
    assert refused(tmp_path, text).startswith("datalayer.toml:5: backends.main.replicas is not of the form")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[backends.main]\nurll = 'x'", "datalayer.toml:2: backends.main.urll is not a known key (did you mean url?)"),
        ("[backend.main]\nurl = 'x'", "datalayer.toml:1: backend is not a known key (did you mean backends?)"),
        (
            "[backends.main]\nurl = 'memory://'\npool_max = 0",
            "datalayer.toml:3: backends.main.pool_max must be a whole number from 1 to 10,000",
        ),
        (
            "[backends.main]\nurl = 'memory://'\npool_max = true",
            "datalayer.toml:3: backends.main.pool_max must be a whole number from 1 to 10,000",
        ),
        ("[backends.main]\nurl = 7", "datalayer.toml:2: backends.main.url must be text and not empty"),
        ("backends = 7", "datalayer.toml:1: backends must be a table ([backends])"),
        ("[backends.main.url]\na = 1", "datalayer.toml:1: backends.main.url must be a plain value, not a table"),
        (
            "[backends.main]\nurl = 'memory://'\n[routes]\nmesages = 'main'",
            "datalayer.toml:4: routes.mesages is no domain (did you mean messages?)",
        ),
        (
            "[backends.main]\nurl = 'memory://'\n[routes]\nmessages = 'mian'",
            "datalayer.toml:4: routes.messages names a backend that is not configured (did you mean main?)",
        ),
        (
            "[backends.main]\nurl = 'memory://'\n[deadlines]\ndefault_s = 60",
            "datalayer.toml:4: deadlines.default_s is more than deadlines.max_s, 30",
        ),
        (
            "[backends.main]\nurl = 'memory://'\n[control]\nurl = 'redis://h/0'",
            "datalayer.toml:4: control.url cannot be redis (one of: sqlite, postgresql, memory)",
        ),
        (
            "[backends.main]\nurl = 'sqlite:///a.sqlite'\n[control]\nurl = 'sqlite:///./a.sqlite'",
            "datalayer.toml:4: control.url is the file of a backend (the control store is a file of its own)",
        ),
        (
            "[backends.main]\nurl = x",
            'datalayer.toml:2: this line is not valid TOML (text stands in quotes: url = "...")',
        ),
        (
            "[backends.main\nurl = 'x'",
            'datalayer.toml:1: this line is not valid TOML (text stands in quotes: url = "...")',
        ),
        ("[backends.main]\n", "datalayer.toml:1: backends.main has no url"),
        ("[backends.M]\nurl = 'memory://'", "datalayer.toml:1: backends.M is no name of a backend"),
        ("[routes]\n", "datalayer.toml: backends is missing"),
        ("", "datalayer.toml: backends is missing"),
        (
            "[backends.main]\nurl = 'sqlite:///a'\npassword = 'hunter2'",
            "datalayer.toml:3: backends.main.password is not known to sqlite (remove it)",
        ),
        ("[backends.main]\nurl = 'cassandra://h/k'", "datalayer.toml: control.url is missing"),
        (
            "[backends.main]\nurl = 'memory://'\nmembers = { a = 'memory://' }",
            "datalayer.toml:3: backends.main.members cannot stand beside url",
        ),
        (
            "[backends.main]\nmembers = { a = 'postgresql://h/a', b = 'postgresql://h/a' }",
            "datalayer.toml:2: backends.main.members name one place twice",
        ),
        (
            "[backends.main]\nmembers = { a = 'postgresql://h/a', b = 'memory://' }",
            "datalayer.toml:2: backends.main.members must all be of one kind",
        ),
        (
            "[backends.main]\nurl = 'memory://'\nreplicas = ['memory://']",
            "datalayer.toml:3: backends.main.replicas are not known to memory",
        ),
        (
            "[backends.main]\nurl = 'postgresql://a/b'\nreplicas = ['postgresql://r/b', 'postgresql://a/b']",
            "datalayer.toml:3: backends.main.replicas name one place twice, or that of url",
        ),
        (
            "[backends.main]\nurl = 'memory://'\nreplicas = 'memory:'",
            "datalayer.toml:3: backends.main.replicas is not of the form scheme://...",
        ),
        (
            "[backends.main]\nurl = 'memory://'\nreplicas = [1]",
            "datalayer.toml:3: backends.main.replicas must be a list of URLs",
        ),
    ],
)
def test_a_mistake_is_one_sentence_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    assert refused(tmp_path, text).startswith(said)


def test_a_url_pasted_as_a_key_is_not_repeated(tmp_path: Path) -> None:
    url = f"postgresql://a:{SECRET}@h/d"
    for text in (f'"{url}" = 1', f'[routes]\n"{url}" = "main"', f'[backends."{url}"]\nurl="memory://"', f"{url} = 1"):
        assert SECRET not in refused(tmp_path, text)


def test_all_mistakes_are_listed_in_order_of_lines() -> None:
    document = {
        "backends": {"main": {"url": "postgresql://db", "pool_maxx": 3}},
        "routes": {"messages": "nowhere"},
        "limits": {"body_max_bytes": -1},
    }
    assert sorted(faults(document)) == [
        "backends.main.pool_maxx is not a known key (did you mean pool_max?)",
        "backends.main.url names no database (postgresql://host/database)",
        "limits.body_max_bytes must be a whole number from 1 to 67,108,864",
        "routes.messages names a backend that is not configured (known: none)",
    ]


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        (
            {"DATALAYER_BACKEND__MAIN__URL": "x"},
            "DATALAYER_BACKEND__MAIN__URL is not a setting (did you mean DATALAYER_BACKENDS__...?)",
        ),
        ({"DATALAYER_BACKENDS__MAIN__URL": "x"}, "DATALAYER_BACKENDS__MAIN__URL: backends.main.url is not of the form"),
        (
            {"DATALAYER_BACKENDS__MAIN__URL_FILE": "/none"},
            "DATALAYER_BACKENDS__MAIN__URL_FILE: backends.main.url comes from a file",
        ),
        (
            {"DATALAYER_BACKENDS__MAIN__POOL_MAX": "many"},
            "DATALAYER_BACKENDS__MAIN__POOL_MAX: backends.main.pool_max must be a whole number",
        ),
        ({"DATALAYER_CONFIG": "none.toml"}, "none.toml: there is no such file (datalayer init writes one)"),
    ],
)
def test_a_mistake_in_the_environment_names_the_variable(tmp_path: Path, environ: dict[str, str], said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(environ=environ, directory=tmp_path)
    assert said in str(caught.value)


def test_a_variable_and_its_file_form_together_are_refused(tmp_path: Path) -> None:
    (tmp_path / "url").write_text("memory://")
    environ = {
        "DATALAYER_BACKENDS__MAIN__URL": "memory://",
        "DATALAYER_BACKENDS__MAIN__URL_FILE": str(tmp_path / "url"),
    }
    assert "is given twice" in refused(tmp_path, **environ)
    del environ["DATALAYER_BACKENDS__MAIN__URL"]
    assert str(load(tmp_path, **environ).backends["main"].url) == "memory://"


@pytest.mark.parametrize(("content", "said"), [(b"x" * 70_000, "more than 64 KiB"), (b"\xff", "not UTF-8 text")])
def test_a_secret_file_that_is_none_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "url").write_bytes(content)
    assert said in refused(tmp_path, DATALAYER_BACKENDS__MAIN__URL_FILE=str(tmp_path / "url"))


def test_a_file_that_is_no_text_or_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "datalayer.toml").write_bytes(b"a = 1\nb = '\xff'\n")
    assert refused(tmp_path) == "datalayer.toml:2: the file is not UTF-8 text"
    assert "the file cannot be read: Is a directory" in refused(tmp_path, DATALAYER_CONFIG=str(tmp_path))


def test_the_default_control_store_follows_the_main_backend() -> None:
    def control(document: dict[str, Any]) -> str:
        return str(parse_settings(document, directory=Path("/srv")).control)

    assert control({"backends": MAIN}) == "postgresql://app@db/app"
    assert control({"backends": {"main": {"url": "sqlite:///d/main.sqlite"}}}) == "sqlite:////srv/d/control.sqlite"
    assert control({"backends": {"only": {"url": "memory://"}}}) == "memory://"


def test_a_domain_without_route_and_main_must_be_routed() -> None:
    backends = {"a": {"url": "memory://"}, "b": {"url": "memory://"}}
    settings = parse_settings({"backends": backends, "control": {"url": "memory://"}, "routes": {"users": "b"}})
    assert settings.backend_of("users").name == "b"
    with pytest.raises(SettingsError, match=r"routes\.messages is missing"):
        settings.backend_of("messages")
    with pytest.raises(SettingsError, match="did you mean messages"):
        settings.backend_of("message")


def test_the_written_file_is_the_embedded_default_spelt_out(tmp_path: Path) -> None:
    embedded = load(tmp_path)
    written = load(tmp_path, render_default_toml())
    assert written.backends == embedded.backends
    assert written.control == embedded.control
    assert (written.limits, written.deadlines) == (embedded.limits, embedded.deadlines)


def test_every_commented_example_in_the_written_file_is_valid(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(SECRET)
    text = re.sub(r"^#(?=[^ \n])", "", render_default_toml(), flags=re.MULTILINE)
    settings = load(tmp_path, text.replace("/run/secrets/postgres", "secret"))
    assert set(settings.backends) == {"main", "cassandra", "shards", "postgres", "redis"}
    assert settings.limits == settings_module.LimitSettings()
    assert settings.deadlines == settings_module.DeadlineSettings()


def test_describe_says_every_key(tmp_path: Path) -> None:
    assert describe(load(tmp_path, DESIGN_EXAMPLE)) == {
        "source": "datalayer.toml",
        "backends": {
            "main": {"url": "postgresql://app@db/app", "replicas": ["postgresql://app@r1/app"], "pool_max": 100},
            "cassandra": {"url": "cassandra://c1,c2/chat?local_dc=dc1&replication=3", "replicas": [], "pool_max": 20},
            "shards": {
                "members": {"s0": "postgresql://h0/app", "s1": "postgresql://h1/app"},
                "weights": {},
                "capacity": {},
                "regions": {},
                "slot_groups": 64,
                "pool_max": 20,
            },
            "redis": {"url": "redis://h/0", "replicas": [], "pool_max": 20},
        },
        "routes": {"users": "shards", "messages": "main"},
        "control": {"url": "postgresql://app@db/app"},
        "limits": {
            "body_max_bytes": 1_048_576,
            "members_max": 10_000,
            "media_max_bytes": 1 << 30,
            "media_types": [],
        },
        "deadlines": {"default_s": 5.0, "max_s": 30.0},
    }


def test_members_in_memory_are_places_of_their_own(tmp_path: Path) -> None:
    text = "[backends.main]\nmembers = { a = 'memory://', b = 'memory://' }\n[control]\nurl = 'memory://'"
    assert set(load(tmp_path, text).backends["main"].members) == {"a", "b"}
