"""Backend URLs, parsed before any driver sees them.

Drivers repeat what they cannot parse, password included, so a store is given the parts of a `BackendUrl` as keywords
and never its text. Two rules keep secrets out of messages: the text forms of a `BackendUrl` are masked, and a fault
says what is wrong without repeating any part of the text - in a malformed URL any part may be the password.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal
from urllib.parse import quote, unquote

from datalayer._settings.faults import Fault, SettingsError, choice, nearest

MASK: Final = "***"
Option = str | int | bool
_Kind = Literal["text", "int", "bool", "secret", "endpoint", "address"]


@dataclass(frozen=True, slots=True)
class _Scheme:
    """What a scheme needs and allows; ``database`` is what its path names."""

    shape: Literal["nothing", "path", "hosts", "bucket"]
    database: str = ""
    database_needed: bool = False
    hosts_needed: bool = True
    options: Mapping[str, _Kind] = field(default_factory=dict)


# The options of each scheme. A store that learns a new one adds it here, so that a misspelt one is refused.
_TLS: Final[dict[str, _Kind]] = {"tls": "bool", "ca": "text", "cert": "text", "key": "text"}
_REDIS: Final[dict[str, _Kind]] = {"prefix": "text", "wait_replicas": "int", **_TLS}
_AWS: Final[dict[str, _Kind]] = {
    "endpoint": "endpoint",
    "region": "text",
    "profile": "text",
    "session_token": "secret",
}
SCHEMES: Final[Mapping[str, _Scheme]] = MappingProxyType(
    {
        "memory": _Scheme("nothing"),
        "sqlite": _Scheme("path"),
        "file": _Scheme("path"),
        "postgresql": _Scheme(
            "hosts",
            "database",
            database_needed=True,
            hosts_needed=False,  # no host is the local socket
            options={
                "application_name": "text",
                "channel_binding": "text",
                "connect_timeout": "int",
                "direct": "address",  # host:port past the pooler, for LISTEN
                "gssencmode": "text",
                "host": "text",  # folder of the local socket
                "pgbouncer": "bool",  # behind a pooler in transaction mode: no prepared statements
                "sslcert": "text",
                "sslkey": "text",
                "sslmode": "text",
                "sslpassword": "secret",
                "sslrootcert": "text",
                "target_session_attrs": "text",
            },
        ),
        "cassandra": _Scheme(
            "hosts", "keyspace", database_needed=True, options={"local_dc": "text", "replication": "int", **_TLS}
        ),
        "redis": _Scheme("hosts", "database number", options=_REDIS),
        "redis+cluster": _Scheme("hosts", options=_REDIS),
        "s3": _Scheme("bucket", "bucket", options={"prefix": "text", "path_style": "bool", **_AWS}),
        "dynamodb": _Scheme("bucket", "table prefix", options=_AWS),
        "opensearch+https": _Scheme("hosts", "index prefix", options=_TLS),
        "opensearch+http": _Scheme("hosts", "index prefix"),
    }
)
_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?|\[[0-9A-Fa-f:.]+(%[A-Za-z0-9]+)?\]")
_BROKEN_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_TRUE, _FALSE = ("true", "1", "yes"), ("false", "0", "no")


@dataclass(frozen=True, slots=True)
class Host:
    """A host name or address (IPv6 without brackets); ``port`` is None where the product's default is meant."""

    name: str
    port: int | None = None

    def __str__(self) -> str:
        name = f"[{self.name}]" if ":" in self.name else self.name
        return name if self.port is None else f"{name}:{self.port}"


@dataclass(frozen=True, slots=True)
class UrlFault:
    """Why a text is no backend URL, without any part of the text."""

    reason: str
    way_out: str | None = None


@dataclass(frozen=True, slots=True, repr=False)
class BackendUrl:
    """Where a backend is and how to log in, in parts; ``str`` and ``repr`` mask the password and secret options.

    ``database`` is the database, keyspace, bucket or prefix. ``path`` is absolute and set for sqlite and file only.
    """

    scheme: str
    hosts: tuple[Host, ...] = ()
    user: str | None = None
    password: str | None = None
    database: str = ""
    path: Path | None = None
    options: Mapping[str, Option] = field(default_factory=lambda: MappingProxyType({}))

    @classmethod
    def parse(cls, text: str, *, directory: Path | None = None) -> BackendUrl:
        """The URL in parts. Relative sqlite paths are taken from ``directory`` (default: the working directory).

        Raises:
            SettingsError: ``text`` is malformed; the error repeats no part of it.
        """
        parsed = parse_url(text, directory=directory)
        del text  # not even as a local of a frame in the traceback
        if isinstance(parsed, UrlFault):
            raise SettingsError([Fault("", "the backend URL", parsed.reason, parsed.way_out)])
        return parsed

    def with_password(self, password: str) -> BackendUrl:
        """The same place, logging in with ``password``."""
        return replace(self, password=password)

    def __str__(self) -> str:
        if self.path is not None:
            return f"{self.scheme}://{'/' if self.scheme == 'sqlite' else ''}{self.path}"
        login = quote(self.user or "", safe="") + ("" if self.password is None else f":{MASK}")
        where = ",".join(map(str, self.hosts))
        database = quote(self.database, safe="")
        if SCHEMES[self.scheme].shape == "bucket":
            where, database = database, ""
        secret = {name for name, kind in SCHEMES[self.scheme].options.items() if kind == "secret"}
        options = "&".join(
            f"{name}={MASK if name in secret else quote(_said(value), safe='/:')}"
            for name, value in self.options.items()
        )
        return (
            f"{self.scheme}://{login}{'@' if login else ''}{where}"
            f"{'/' if database else ''}{database}{'?' if options else ''}{options}"
        )

    def __repr__(self) -> str:
        return f"<BackendUrl {self}>"


def _said(value: Option) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def takes_login(scheme: str) -> bool:
    """Whether backends of this kind know users and passwords."""
    return SCHEMES[scheme].shape in {"hosts", "bucket"}


class _Malformed(Exception):
    def __init__(self, reason: str, way_out: str | None = None) -> None:
        super().__init__(reason)
        self.fault = UrlFault(reason, way_out)


def parse_url(text: str, *, directory: Path | None = None) -> BackendUrl | UrlFault:
    """As `BackendUrl.parse`, with the fault as a value, for a caller that knows the place."""
    try:
        return _parse(text, directory or Path.cwd())
    except _Malformed as malformed:
        return malformed.fault


def _parse(text: str, directory: Path) -> BackendUrl:
    if any(ord(character) <= 0x20 or 0x7F <= ord(character) <= 0xA0 for character in text):
        raise _Malformed("contains white space or a control character", "percent-encode it (a space is %20)")
    name, separator, rest = text.partition("://")
    if not separator:
        raise _Malformed("is not of the form scheme://...", f"known schemes: {', '.join(sorted(SCHEMES))}")
    scheme = SCHEMES.get(name)
    if scheme is None:
        raise _Malformed("has an unknown scheme", choice(name, SCHEMES))
    if "#" in rest:
        raise _Malformed("contains a bare '#'", "write it as %23")
    if scheme.shape == "path":
        return BackendUrl(name, path=_path(name, rest, directory))
    end = min((index for mark in "/?" if (index := rest.find(mark)) >= 0), default=len(rest))
    authority, (path, _, query) = rest[:end], rest[end:].partition("?")
    if "@" in path or "@" in query:
        raise _Malformed("has an '@' after the host", "percent-encode / ? @ in the password as %2F %3F %40")
    login, has_login, where = authority.rpartition("@")
    if "@" in login:
        raise _Malformed("has more than one '@'", "write an '@' in the password as %40")
    user, has_password, password = login.partition(":")
    options = _options(query, scheme)
    url = BackendUrl(
        name,
        user=_decoded(user) or None,
        password=_decoded(password) if has_password else None,
        options=MappingProxyType(options),
    )
    if scheme.shape == "nothing":
        if authority or path.strip("/") or options:
            raise _Malformed("takes nothing after memory://")
        return url
    if has_login and not user and not password:
        raise _Malformed("has an empty login before '@'")
    if scheme.shape == "bucket":
        return replace(url, database=_bucket(where, path, scheme))
    return replace(url, hosts=_hosts(where, scheme), database=_database(name, path, scheme))


def _path(name: str, rest: str, directory: Path) -> Path:
    if not rest.startswith("/"):
        raise _Malformed(
            "has a host where a path is expected",
            "three slashes and the absolute path: file:///srv/media"
            if name == "file"
            else "sqlite:///file.sqlite is relative, sqlite:////srv/file.sqlite absolute",
        )
    if "?" in rest:
        raise _Malformed(f"takes no options: {name} has none")
    path = _decoded(rest if name == "file" else rest[1:])
    if path in {"", "/", ":memory:"}:
        raise _Malformed("names no file" if name == "sqlite" else "names no folder", "for memory alone use memory://")
    # without touching the file system: one spelling per place, links are left to the store
    return Path(os.path.normpath(Path(directory, path).absolute()))


def _decoded(part: str) -> str:
    if _BROKEN_ESCAPE.search(part):
        raise _Malformed("has a broken percent escape", "write a '%' as %25")
    try:
        decoded = unquote(part, errors="strict")
    except UnicodeDecodeError:
        decoded = "\0"
    if "\0" in decoded:
        raise _Malformed("has a percent escape that is not UTF-8 text")
    return decoded


def _hosts(where: str, scheme: _Scheme) -> tuple[Host, ...]:
    if not where and not scheme.hosts_needed:
        return ()
    return tuple(_host(part) for part in where.split(","))


def _host(part: str) -> Host:
    name, colon, port = part.rpartition(":") if not part.endswith("]") else (part, "", "")
    if not colon:
        name, port = part, ""
    if not _HOST.fullmatch(name):
        raise _Malformed(
            "has an empty or malformed host",
            "scheme://user:password@host:port/name, several hosts with commas; percent-encode / ? # @ in the password",
        )
    if colon and not (port.isascii() and port.isdigit() and len(port) <= 5 and 1 <= int(port) <= 65535):
        raise _Malformed(
            "has a port that is not a number from 1 to 65535",
            "if this is the password: the host is missing, or / ? # @ in it are not percent-encoded",
        )
    return Host(name.strip("[]"), int(port) if colon else None)


def _database(name: str, path: str, scheme: _Scheme) -> str:
    database = _decoded(path.removeprefix("/"))
    if "/" in path[1:]:
        raise _Malformed("has more than one part after the host")
    if database and not scheme.database:
        raise _Malformed(f"takes nothing after the host: {name} has no databases")
    if not database and scheme.database_needed:
        raise _Malformed(f"names no {scheme.database}", f"{name}://host/{scheme.database}")
    if name == "redis" and database and not (database.isascii() and database.isdigit()):
        raise _Malformed("has a database number that is not a number", "redis://host/0")
    return database


def _bucket(where: str, path: str, scheme: _Scheme) -> str:
    bucket = _decoded(where)
    if path.strip("/"):
        raise _Malformed(f"has a path after the {scheme.database}", "give a prefix as an option: ?prefix=...")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}", bucket):
        raise _Malformed(f"has an empty or malformed {scheme.database}")
    return bucket


def _options(query: str, scheme: _Scheme) -> dict[str, Option]:
    options: dict[str, Option] = {}
    for part in query.split("&") if query else ():
        name, equals, value = part.partition("=")
        if not equals:
            raise _Malformed("has an option without '='", "options follow the '?' as name=value, joined by '&'")
        kind = scheme.options.get(name)
        if kind is None:
            meant = nearest(name, scheme.options)
            raise _Malformed(
                "has an unknown option",
                f"did you mean {meant}?" if meant else f"known: {', '.join(sorted(scheme.options)) or 'none'}",
            )
        if name in options:
            raise _Malformed(f"gives the option {name} twice")
        options[name] = _option(name, _decoded(value), kind)
    return options


def _option(name: str, value: str, kind: _Kind) -> Option:
    if kind == "int":
        if not (value.isascii() and value.isdigit() and len(value) <= 9):
            raise _Malformed(f"has an option {name} that is not a number")
        return int(value)
    if kind == "bool":
        if value.lower() not in _TRUE + _FALSE:
            raise _Malformed(f"has an option {name} that is neither true nor false")
        return value.lower() in _TRUE
    if kind == "endpoint" and (not re.match(r"https?://.", value) or "@" in value):
        raise _Malformed(f"has an option {name} that is not http(s)://host:port without a login")
    if kind == "address" and not re.fullmatch(r".+:[0-9]{1,5}", value):
        raise _Malformed(f"has an option {name} that is not HOST:PORT")
    return value
