"""BackendUrl: what parses, how it prints, and that nothing it says holds a secret."""

import json
import traceback
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datalayer.settings import BackendUrl, Host, SettingsError, load_settings, parse_settings

# Every piece of these that a person could hold for a secret says so.
S, T = "hunter2", "sesame9"
MALFORMED = [
    f"postgresql//app:{S}@db/app",
    f"postgresql:/app:{S}@db/app",
    f"app:{S}@db/app",
    f"{S}",
    f"{S}://app:{T}@db/app",
    f"postgres://app:{S}@db/app",
    f"postgresql+psycopg://app:{S}@db/app",
    f"POSTGRESQL://app:{S}@db/app",
    f"postgresql://app:{S}#{T}@db/app",
    f"postgresql://app:{S}/{T}@db/app",
    f"postgresql://app:{S}?{T}@db/app",
    f"postgresql://app:{S}@{T}@db/app",
    f"postgresql://app:{S}%zz{T}@db/app",
    f"postgresql://app:{S}%@db/app",
    f"postgresql://app:{S}%ff@db/app",
    f"postgresql://app:{S}%00@db/app",
    f"postgresql://app:{S} {T}@db/app",
    f"postgresql://app:{S}\t{T}@db/app",
    f"postgresql://app:{S}\u00a0@db/app",
    f"postgresql://app:{S}",
    f"postgresql://app:{S}/app",
    f"postgresql://app:{S}@db:{T}/app",
    f"postgresql://app:{S}@db:99999/app",
    f"postgresql://app:{S}@db:/app",
    f"postgresql://app:{S}@db,,db2/app",
    f"postgresql://app:{S}@[::1/app",
    f"postgresql://app:{S}@-db-/app",
    f"postgresql://app:{S}@db/",
    f"postgresql://app:{S}@db/app/{T}",
    f"postgresql://app:{S}@db/app?{T}",
    f"postgresql://app:{S}@db/app?{T}=1",
    f"postgresql://app:{S}@db/app?sslmode=a&sslmode={T}",
    f"postgresql://app:{S}@db/app?connect_timeout={T}",
    f"postgresql://app:{S}@db/app?password={T}",
    f"cassandra://app:{S}@c1,c2",
    f"cassandra://app:{S}@c1/chat?replication={T}",
    f"cassandra://app:{S}@c1/chat?tls={T}",
    f"redis://:{S}@h/{T}",
    f"redis+cluster://:{S}@h/0",
    f"s3://KEY:{S}@/",
    f"s3://KEY:{S}@bucket/{T}",
    f"s3://KEY:{S}@bucket?endpoint=http://{T}:{T}@minio:9000",
    f"s3://KEY:{S}@bucket?endpoint={T}",
    f"s3://KEY:{S}/{T}@bucket",
    f"opensearch://app:{S}@search",
    f"opensearch+https://app:{S}@search?ca={T}&{T}",
    f"memory://{S}",
    f"memory://?{S}={T}",
    f"sqlite://{S}",
    f"sqlite:///a.sqlite?key={S}",
    f"sqlite:///{S}%zz",
    "sqlite:///",
    "sqlite:///:memory:",
    f"file://{S}/media",
    "file:///",
    "",
]


def _parse(text: str) -> object:
    return BackendUrl.parse(text)


def _as_backend(text: str) -> object:
    return parse_settings({"backends": {"main": {"url": text}}})


def _as_environment(text: str) -> object:
    return load_settings(environ={"DATALAYER_BACKENDS__MAIN__URL": text}, directory=Path("/"))


def _as_control(text: str) -> object:
    return parse_settings({"backends": {"main": {"url": "memory://"}}, "control": {"url": text}})


def _as_replica(text: str) -> object:
    backend = {"url": "postgresql://db/app", "replicas": [text]}
    return parse_settings({"backends": {"main": backend}})


@pytest.mark.parametrize("read", [_parse, _as_backend, _as_environment, _as_control, _as_replica])
@pytest.mark.parametrize("text", MALFORMED)
def test_a_malformed_url_is_refused_and_no_form_of_the_error_holds_a_secret(
    text: str, read: Callable[[str], object]
) -> None:
    with pytest.raises(SettingsError) as caught:
        read(text)
    error = caught.value
    forms = [str(error), repr(error), repr(error.args), json.dumps([str(fault) for fault in error.faults])]
    forms += [repr(error.faults), str(error.hint)]
    forms += ["".join(traceback.format_exception(error))]
    # Reporting services print the locals of frames: those of ours hold no secret. The test's own frames do.
    for frame in traceback.TracebackException.from_exception(error, capture_locals=True).stack:
        if Path(frame.filename).parent.name != "unit":
            forms += [repr(frame.locals)]
    assert [form for form in forms if S in form or T in form] == []
    assert error.__cause__ is None
    assert error.__context__ is None


def test_a_planted_leak_is_found() -> None:
    def leaking(text: str) -> None:
        kept = text
        raise ValueError(f"cannot parse {kept}")

    with pytest.raises(ValueError, match="cannot parse") as caught:
        leaking(MALFORMED[0])
    assert S in "".join(traceback.format_exception(caught.value))
    frames = traceback.TracebackException.from_exception(caught.value, capture_locals=True).stack
    assert S in repr(frames[-1].locals)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"postgresql://app:{S}@db:5433/app", "postgresql://app:***@db:5433/app"),
        (f"postgresql://app:{S}@db/app?sslmode=require", "postgresql://app:***@db/app?sslmode=require"),
        (f"postgresql://db/app?sslpassword={S}", "postgresql://db/app?sslpassword=***"),
        (f"postgresql://:{S}@db/app", "postgresql://:***@db/app"),
        ("postgresql:///app?host=/run/postgresql", "postgresql:///app?host=/run/postgresql"),
        ("postgresql://app@[::1]:5432/app", "postgresql://app@[::1]:5432/app"),
        ("cassandra://c1,c2:9043/chat?local_dc=dc1&replication=3", None),
        ("redis://h/0", None),
        ("redis+cluster://h1,h2?tls=true", None),
        (f"s3://KEY:{S}@bucket?endpoint=http://minio:9000&session_token={S}", None),
        ("dynamodb://app?region=eu-central-1", None),
        (f"opensearch+https://admin:{S}@search:9200", "opensearch+https://admin:***@search:9200"),
        ("memory://", None),
        ("sqlite:////srv/app.sqlite", None),
        ("file:///srv/media", None),
    ],
)
def test_a_url_prints_masked_and_otherwise_as_it_was(text: str, said: str | None) -> None:
    url = BackendUrl.parse(text)
    assert str(url) == (said or text.replace(S, "***"))
    for form in (str(url), repr(url), f"{url}", f"{[url]}", "%s" % url, ascii(url)):  # noqa: UP031 - each way to print
        assert S not in form


def test_parts_are_decoded() -> None:
    url = BackendUrl.parse("postgresql://a%40b:p%2F%3A%40%23@h1,[fe80::1]:5433/my%20app?connect_timeout=7")
    assert url == BackendUrl(
        "postgresql",
        hosts=(Host("h1"), Host("fe80::1", 5433)),
        user="a@b",
        password="p/:@#",
        database="my app",
        options={"connect_timeout": 7},
    )


def test_sqlite_paths_are_relative_to_the_given_directory(tmp_path: Path) -> None:
    assert BackendUrl.parse("sqlite:///a/../b.sqlite", directory=tmp_path).path == tmp_path / "b.sqlite"
    assert BackendUrl.parse("sqlite:////srv/b.sqlite", directory=tmp_path).path == Path("/srv/b.sqlite")
    assert BackendUrl.parse("sqlite:///b.sqlite").path == Path.cwd() / "b.sqlite"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("postgres://db/app", "unknown scheme (did you mean postgresql?)"),
        ("postgresql://db/app?sslmod=a", "unknown option (did you mean sslmode?)"),
        ("postgresql://db", "names no database (postgresql://host/database)"),
        ("postgresql://a:b:c/app", "percent-encode"),
        ("sqlite:///:memory:", "for memory alone use memory://"),
        ("file://media", "three slashes"),
        ("opensearch://h", "did you mean opensearch+http"),
    ],
)
def test_an_error_names_the_way_out(text: str, words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        BackendUrl.parse(text)
    assert words in str(caught.value)


@given(
    text=st.text(max_size=40), prefix=st.sampled_from(["", "postgresql://", "s3://", "sqlite:///", "redis://u:p@h/"])
)
def test_any_text_is_parsed_or_refused(text: str, prefix: str) -> None:
    try:
        url = BackendUrl.parse(prefix + text)
    except SettingsError:
        return
    assert str(url).startswith(url.scheme)


@given(user=st.text(min_size=1), password=st.text(), database=st.text(min_size=1))
def test_every_login_can_be_written(user: str, password: str, database: str) -> None:
    try:
        parts = [quote(part, safe="") for part in (user, password, database)]
    except UnicodeEncodeError:
        return  # lone surrogates have no percent-encoding
    if "\0" in user + password + database or "/" in database:
        return
    url = BackendUrl.parse(f"postgresql://{parts[0]}:{parts[1]}@h/{parts[2]}")
    assert (url.user, url.password, url.database) == (user, password, database)


@pytest.mark.parametrize("direct", ["127.0.0.1", "db", ":5432", "db:port", "db:"])
def test_the_server_behind_a_pooler_is_named_with_its_port(direct: str) -> None:
    url = "postgresql://app@bouncer:6432/app?pgbouncer=true&direct="
    assert BackendUrl.parse(f"{url}db:5432").options["direct"] == "db:5432"
    with pytest.raises(SettingsError, match="has an option direct that is not HOST:PORT"):
        BackendUrl.parse(f"{url}{direct}")
