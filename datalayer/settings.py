"""Configuration, parsed once at the edge into frozen values.

Order: an explicit path, else $DATALAYER_CONFIG, else ./datalayer.toml, else DATALAYER_BACKENDS__MAIN__URL and its like,
else the embedded default (SQLite files under ./datalayer-data, with one warning that names the absolute path;
DATALAYER_EMBEDDED=never refuses it). DATALAYER_SECTION__NAME__KEY variables overlay a file key by key, so that secrets
need not stand in it; ..._FILE names a file that holds the value.

Nothing here opens a connection, creates a folder or imports a driver.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from datalayer._settings.faults import Fault, SettingsError, choice, sayable
from datalayer._settings.reader import Reader
from datalayer._settings.sources import EnvironmentSource, Key, MappingSource, TomlSource, Value, flat
from datalayer._settings.template import TEMPLATE
from datalayer._settings.url import BackendUrl, Host, Option
from datalayer.domains.movement import MOVEMENTS
from datalayer.errors import PreconditionFailed
from datalayer.ids import SLOTS
from datalayer.types import REGION_NAME

__all__ = [
    "DEFAULT_FILE",
    "DOMAINS",
    "BackendSettings",
    "BackendUrl",
    "DeadlineSettings",
    "Fault",
    "Host",
    "LimitSettings",
    "Option",
    "Settings",
    "SettingsError",
    "describe",
    "explain",
    "load_settings",
    "parse_settings",
    "render_default_toml",
    "write_default_toml",
]

DOMAINS: Final = tuple(MOVEMENTS)
PERIODS: Final = ("month", "week", "day")
SEARCH_METHODS: Final = ("like", "tsvector")
_BESIDE: Final = {"conversations": "users", "listings": "conversations", "typing": "presence", "catalogue": "users"}
"""What needs the same of a store as its neighbour, so that a configuration need not name it."""
DEFAULT_FILE: Final = "datalayer.toml"
EMBEDDED_FOLDER: Final = "datalayer-data"
DEFAULT_BACKEND: Final = "main"
MEMORY_BACKEND: Final = "memory"
FILES_BACKEND: Final = "files"
POOL_MAX: Final = 20
SLOT_GROUPS: Final = 64
_CONTROL_SCHEMES: Final = ("sqlite", "postgresql", "memory")
_NAME: Final = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_MEDIA_TYPE: Final = re.compile(r"[a-z0-9][a-z0-9!#$&^_.+-]*/(\*|[a-z0-9][a-z0-9!#$&^_.+-]*)")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BackendSettings:
    """One configured store: either ``url`` (with read ``replicas``) or ``members``, the shards by name."""

    name: str
    url: BackendUrl | None = None
    members: Mapping[str, BackendUrl] = field(default_factory=lambda: MappingProxyType({}))
    replicas: tuple[BackendUrl, ...] = ()
    pool_max: int = POOL_MAX
    """Connections of this process to this backend, a total over its members and replicas."""
    slot_groups: int = SLOT_GROUPS
    """Into how many slot groups a domain's place on a sharded backend is cut when it is made."""
    weights: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    """Share of each member, relative to the others; 1 where none is given."""
    capacity: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    """Bytes that a member may be planned to hold; unlimited where none is given."""
    partition_messages: str | None = None
    """Postgres: places of messages made from now on are partitioned by this period, one of PERIODS."""
    regions: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """The region of each member, for users with a home region: of all members or of none."""
    search: str | None = None
    """Postgres: how search finds words, one of SEARCH_METHODS."""
    cdn_url: str | None = None
    """Of a backend of media: where a CDN serves what it holds; the object's name follows."""

    @property
    def scheme(self) -> str:
        """The kind of store; members are all of one kind."""
        return (self.url or next(iter(self.members.values()))).scheme


@dataclass(frozen=True, slots=True)
class LimitSettings:
    """What a caller may send."""

    body_max_bytes: int = 1 << 20
    members_max: int = 10_000
    """Members of one conversation."""
    media_max_bytes: int = 1 << 30
    """Bytes of one item of media."""
    media_types: tuple[str, ...] = ()
    """Content types of media that are allowed, also as ``image/*``; all where it is empty."""


@dataclass(frozen=True, slots=True)
class DeadlineSettings:
    """How long a call may take: without ``timeout=``, and at most."""

    default_s: float = 5.0
    max_s: float = 30.0


_LIMITS: Final = LimitSettings()
_DEADLINES: Final = DeadlineSettings()


def _nowhere(key: Key) -> None:
    """The place of a key in settings that a program put together by hand."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The whole configuration. ``embedded_directory`` is set where nothing was configured; it may not exist yet."""

    backends: Mapping[str, BackendSettings]
    routes: Mapping[str, str]
    """Backend by domain, as configured: the first placement; use `backend_of` to fill in the default."""
    control: BackendUrl
    limits: LimitSettings = _LIMITS
    deadlines: DeadlineSettings = _DEADLINES
    embedded_directory: Path | None = None
    source: str = "settings"
    places: Callable[[Key], str | None] = field(default=_nowhere, repr=False, compare=False)
    """Where a key was given (file:line or variable), None where it is a default."""

    def backend_of(self, domain: str) -> BackendSettings:
        """The backend that first serves ``domain``: its route, else the backend called main, else the only one.

        Conversations then lie beside users, and users' lists of conversations beside those; the catalogue of media
        lies beside users, typing beside presence. Presence without a route is in the memory of each process, and media
        lie in a folder beside main's SQLite file.

        Raises:
            SettingsError: the domain is unknown, or there are several backends, none called main, and no route.
        """
        if domain not in DOMAINS:
            raise SettingsError([Fault("", sayable(domain), "is no domain", choice(domain, DOMAINS))])
        if name := self.routes.get(domain):
            return self.backends[name]
        if (default := self._by_default(domain)) is not None:
            return default
        if DEFAULT_BACKEND in self.backends:
            return self.backends[DEFAULT_BACKEND]
        if len(self.backends) == 1:
            return next(iter(self.backends.values()))
        if domain in _BESIDE:
            return self.backend_of(_BESIDE[domain])
        way_out = f"one of: {', '.join(self.backends)}"
        raise SettingsError(
            [Fault(self.source, f"routes.{domain}", "is missing and no backend is called main", way_out)]
        )

    def _by_default(self, domain: str) -> BackendSettings | None:
        """The backend that a domain has where no route and no neighbour names one, and main is not for it."""
        if domain == "typing":
            return self.backend_of("presence")
        if domain == "presence":
            # Of one deployment: another layer of this process, over another control store, has a memory of its own.
            own = BackendUrl("memory", database=str(self.control))
            return self.backends.get(MEMORY_BACKEND) or BackendSettings(MEMORY_BACKEND, own)
        if domain != "media":
            return None
        main = self.backends.get(DEFAULT_BACKEND)
        if FILES_BACKEND in self.backends or main is None or main.url is None or main.url.path is None:
            return self.backends.get(FILES_BACKEND)
        return BackendSettings(FILES_BACKEND, BackendUrl("file", path=main.url.path.with_name("media")))

    def all_backends(self, domains: Iterable[str]) -> dict[str, BackendSettings]:
        """The configured backends, and those that these domains have by default."""
        found = dict(self.backends)
        for domain in domains:
            default = None if domain in self.routes else self._by_default(domain)
            if default is not None:
                found.setdefault(default.name, default)
        return found


def load_settings(
    path: str | os.PathLike[str] | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    directory: Path | None = None,
) -> Settings:
    """The settings in force. ``environ`` and ``directory`` default to those of the process.

    Raises:
        SettingsError: with every mistake found, each by place, key, reason and way out.
    """
    directory = (directory or Path.cwd()).absolute()
    environment = EnvironmentSource(os.environ if environ is None else environ, directory)
    del environ  # it holds secrets: no frame of a traceback shows it
    file = _file(path, environment)
    if file is not None:
        values = file.values()
        values |= environment.values(values)
        return _settings(values, source=file.name)
    values = environment.values({})
    if any(key[0] == "backends" for key in values):
        return _settings(values, source="environment")
    return _embedded(values, environment)


def parse_settings(document: Mapping[str, Any], *, directory: Path | None = None) -> Settings:
    """Settings from a mapping shaped like the TOML file, for programs and tests; the environment is not read.

    Raises:
        SettingsError: as for `load_settings`.
    """
    source = MappingSource(document, (directory or Path.cwd()).absolute())
    del document
    return _settings(source.values(), source=source.name)


def render_default_toml() -> str:
    """A commented, valid configuration to start from; as it stands it is the embedded default."""
    return TEMPLATE


def describe(settings: Settings) -> dict[str, Any]:
    """The settings as plain values for printing and JSON, passwords masked."""
    return {
        "source": settings.source,
        "backends": {name: _described(backend) for name, backend in settings.backends.items()},
        "routes": dict(settings.routes),
        "control": {"url": str(settings.control)},
        "limits": {
            "body_max_bytes": settings.limits.body_max_bytes,
            "members_max": settings.limits.members_max,
            "media_max_bytes": settings.limits.media_max_bytes,
            "media_types": list(settings.limits.media_types),
        },
        "deadlines": {"default_s": settings.deadlines.default_s, "max_s": settings.deadlines.max_s},
    }


def explain(settings: Settings) -> list[tuple[Key, Any, str]]:
    """Each setting as key, value (masked) and place: ``file:line``, a variable, or ``default``."""
    sections = {name: section for name, section in describe(settings).items() if name != "source"}
    return [(key, value, settings.places(key) or "default") for key, value in flat(sections) if value not in ([], {})]


def write_default_toml(path: Path) -> None:
    """Write `render_default_toml` to a new file.

    Raises:
        PreconditionFailed: the file exists (it is left as it was), or cannot be written.
    """
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(TEMPLATE)
    except FileExistsError:
        reason, hint = f"{path} exists already", "remove it, or name another: --config FILE"
    except OSError as error:
        reason, hint = f"{path} cannot be written: {error.strerror}", None
    else:
        return
    raise PreconditionFailed(reason, hint=hint)


def _described(backend: BackendSettings) -> dict[str, Any]:
    described: dict[str, Any] = {"pool_max": backend.pool_max}
    if backend.partition_messages is not None:
        described["partition_messages"] = backend.partition_messages
    if backend.cdn_url is not None:
        described["cdn_url"] = backend.cdn_url
    if backend.search is not None:
        described["search"] = backend.search
    if backend.url is not None:
        described = {"url": str(backend.url), "replicas": [str(url) for url in backend.replicas], **described}
    else:
        described = {
            "members": {name: str(url) for name, url in backend.members.items()},
            "weights": dict(backend.weights),
            "capacity": dict(backend.capacity),
            "regions": dict(backend.regions),
            "slot_groups": backend.slot_groups,
            **described,
        }
    return described


def _file(path: str | os.PathLike[str] | None, environment: EnvironmentSource) -> TomlSource | None:
    given = os.fspath(path) if path is not None else environment.get("DATALAYER_CONFIG")
    if given:
        return TomlSource.read(environment.directory / given, name=given)
    default = environment.directory / DEFAULT_FILE
    return TomlSource.read(default, name=DEFAULT_FILE) if default.exists() else None


def _embedded(values: dict[Key, Value], environment: EnvironmentSource) -> Settings:
    directory = environment.directory
    folder = directory / EMBEDDED_FOLDER
    asked = environment.get("DATALAYER_EMBEDDED")
    if asked == "never":
        way_out = "datalayer init writes datalayer.toml; or set DATALAYER_CONFIG or DATALAYER_BACKENDS__MAIN__URL"
        raise SettingsError([Fault(str(directory), "", "nothing is configured and DATALAYER_EMBEDDED=never", way_out)])
    if asked:
        raise SettingsError([Fault("environment", "DATALAYER_EMBEDDED", "has one value only", "never")])
    document = {"backends": {DEFAULT_BACKEND: {"url": f"sqlite:///{EMBEDDED_FOLDER}/main.sqlite"}}}
    base = MappingSource(document, directory, "embedded default").values()
    settings = _settings(base | values, source="embedded default", embedded=folder)
    _log.warning("nothing is configured: everything is stored in %s (datalayer init writes a configuration)", folder)
    return settings


# --- from flat values to settings ------------------------------------------------------------------------------------


def _settings(values: dict[Key, Value], *, source: str, embedded: Path | None = None) -> Settings:
    reader = Reader(values)
    reader.check_keys()
    backends = {name: backend for name in reader.names("backends") if (backend := _backend(reader, name))}
    if not backends and not reader.faults:
        reader.faults.append(Fault(source, "backends", "is missing", '[backends.main] with url = "..."'))
    routes = _routes(reader, backends)
    limits = LimitSettings(
        body_max_bytes=reader.whole(("limits", "body_max_bytes"), _LIMITS.body_max_bytes, (1, 64 << 20)),
        members_max=reader.whole(("limits", "members_max"), _LIMITS.members_max, (1, 100_000)),
        media_max_bytes=reader.whole(("limits", "media_max_bytes"), _LIMITS.media_max_bytes, (1, 40 << 30)),
        media_types=_media_types(reader),
    )
    deadlines = _deadlines(reader)
    control = _control(reader, backends, source)
    if reader.faults or control is None:
        raise SettingsError(sorted(reader.faults, key=_order))
    return Settings(
        backends=MappingProxyType(backends),
        routes=MappingProxyType(routes),
        control=control,
        limits=limits,
        deadlines=deadlines,
        embedded_directory=embedded,
        source=source,
        places=reader.place,
    )


def _media_types(reader: Reader) -> tuple[str, ...]:
    key = ("limits", "media_types")
    types = reader.texts(key)
    for one in types:
        if not _MEDIA_TYPE.fullmatch(one):
            reader.fault(key, "has a content type that is none", '"image/png", or "image/*" for all of a kind')
    return types


def _order(fault: Fault) -> tuple[str, int]:
    name, _, line = fault.place.rpartition(":")
    return (name, int(line)) if line.isdigit() else (fault.place, 0)


def _backend(reader: Reader, name: str) -> BackendSettings | None:
    key = ("backends", name)
    if not _NAME.fullmatch(name):
        reader.fault(key, "is no name of a backend", "a-z, then a-z 0-9 _ -, at most 63 characters")
    password = reader.text((*key, "password"))
    url = reader.url((*key, "url"), password)
    members = {
        member: parsed
        for member in reader.names(*key, "members")
        if (parsed := reader.url((*key, "members", member), password))
    }
    replicas = reader.urls((*key, "replicas"), password)
    pool_max = reader.whole((*key, "pool_max"), POOL_MAX, (1, 10_000))
    slot_groups = reader.whole((*key, "slot_groups"), SLOT_GROUPS, (1, SLOTS))
    weights = {
        member: reader.number((*key, "weights", member), 1.0, (0.0, 1e6)) for member in reader.names(*key, "weights")
    }
    capacity = {
        member: reader.whole((*key, "capacity", member), 0, (1, 1 << 60)) for member in reader.names(*key, "capacity")
    }
    period = reader.text((*key, "partition_messages"))
    if period is not None and period not in PERIODS:
        reader.fault((*key, "partition_messages"), "is no period", choice(period, PERIODS))
    search = reader.text((*key, "search"))
    cdn_url = reader.text((*key, "cdn_url"))
    if search is not None and search not in SEARCH_METHODS:
        reader.fault((*key, "search"), "is no way to search", choice(search, SEARCH_METHODS))
    regions = {
        member: region for member in reader.names(*key, "regions") if (region := reader.text((*key, "regions", member)))
    }
    if not reader.faulty(key):
        _check_cdn(reader, key, cdn_url, url)
        of_postgres = {"partition_messages": period, "search": search}
        elsewhere = any(one.scheme != "postgresql" for one in (url, *members.values()) if one)
        for name_ in (name_ for name_, value in of_postgres.items() if value is not None and elsewhere):
            reader.fault((*key, name_), "is known to postgresql alone", "remove it")
        _check_backend(reader, key, url, members, replicas)
        _check_shards(reader, key, members, slot_groups, weights)
        for member in capacity:
            if member not in members:
                reader.fault((*key, "capacity", member), "is no member of this backend", choice(member, members))
        _check_regions(reader, key, members, regions)
    if reader.faulty(key):
        return None
    return BackendSettings(
        name,
        url,
        MappingProxyType(members),
        replicas,
        pool_max,
        slot_groups,
        MappingProxyType(weights),
        MappingProxyType(capacity),
        period,
        MappingProxyType(regions),
        search,
        cdn_url,
    )


def _check_cdn(reader: Reader, key: Key, cdn_url: str | None, url: BackendUrl | None) -> None:
    if cdn_url is None:
        return
    if url is None or url.scheme not in {"s3", "file"}:
        reader.fault((*key, "cdn_url"), "is known to s3 and file alone", "remove it")
    elif not re.fullmatch(r"https?://[^\s@?#]+", cdn_url):
        reader.fault((*key, "cdn_url"), "is no URL", '"https://cdn.example.org", without a login or question mark')


def _check_regions(reader: Reader, key: Key, members: Mapping[str, BackendUrl], regions: Mapping[str, str]) -> None:
    for member, region in regions.items():
        if member not in members:
            reader.fault((*key, "regions", member), "is no member of this backend", choice(member, members))
        elif not REGION_NAME.fullmatch(region):
            reader.fault((*key, "regions", member), "is no name of a region", "a-z, then a-z 0-9 -, such as eu-west")
    for member in members:
        if regions and member not in regions:
            reader.fault((*key, "regions"), f"leave out {member}", "every member has a region, or none has")


def _check_shards(
    reader: Reader, key: Key, members: Mapping[str, BackendUrl], slot_groups: int, weights: Mapping[str, float]
) -> None:
    if SLOTS % slot_groups:
        reader.fault((*key, "slot_groups"), f"must divide {SLOTS} evenly", "64, or another power of two")
    for member in members:
        if not _NAME.fullmatch(member):
            reader.fault((*key, "members", member), "is no name of a shard", "a-z, then a-z 0-9 _ -")
    for member in weights:
        if member not in members:
            reader.fault((*key, "weights", member), "is no member of this backend", choice(member, members))
    if members and all(weights.get(member, 1.0) == 0 for member in members):
        reader.fault((*key, "weights"), "leave no member that may hold anything")


def _check_backend(
    reader: Reader,
    key: Key,
    url: BackendUrl | None,
    members: Mapping[str, BackendUrl],
    replicas: tuple[BackendUrl, ...],
) -> None:
    if url is None and not members:
        reader.fault(key, "has no url", 'url = "postgresql://app@db/app", or members = { s0 = "...", s1 = "..." }')
    elif url is not None and members:
        reader.fault((*key, "members"), "cannot stand beside url", "one store has a url, a sharded one has members")
    elif len({member.scheme for member in members.values()}) > 1:
        reader.fault((*key, "members"), "must all be of one kind")
    elif len({_place_of(url, name) for name, url in members.items()}) < len(members):
        reader.fault((*key, "members"), "name one place twice")
    elif replicas and (url is None or any(replica.scheme != url.scheme for replica in replicas)):
        reader.fault((*key, "replicas"), "must be of the same kind as url", "a sharded backend has none here")
    elif replicas and url is not None and url.scheme != "postgresql":
        reader.fault((*key, "replicas"), f"are not known to {url.scheme}", "remove them")
    elif any(replica.options.get("pgbouncer") for replica in replicas):
        reader.fault(
            (*key, "replicas"),
            "are behind a pooler, which hides what server answers",
            "the replicas' own addresses, without pgbouncer=true",
        )
    elif replicas and url is not None and len({_place_of(one) for one in (url, *replicas)}) <= len(replicas):
        reader.fault((*key, "replicas"), "name one place twice, or that of url")


def _place_of(url: BackendUrl, name: str = "") -> tuple[object, ...]:
    """What tells one place from another; in memory a server is called by the name of its member."""
    return (
        name if url.scheme == "memory" else "",
        url.scheme,
        url.hosts,
        url.database,
        url.path,
        url.options.get("host"),
    )


def _routes(reader: Reader, backends: Iterable[str]) -> dict[str, str]:
    routes: dict[str, str] = {}
    for domain in reader.names("routes"):
        backend = reader.text(("routes", domain))
        if domain not in DOMAINS:
            reader.fault(("routes", domain), "is no domain", choice(domain, DOMAINS))
        elif backend is not None and backend not in reader.names("backends"):
            reader.fault(("routes", domain), "names a backend that is not configured", choice(backend, backends))
        elif backend is not None:
            routes[domain] = backend
    return routes


def _deadlines(reader: Reader) -> DeadlineSettings:
    default_s = reader.number(("deadlines", "default_s"), _DEADLINES.default_s, (0.001, 3600))
    max_s = reader.number(("deadlines", "max_s"), _DEADLINES.max_s, (0.001, 3600))
    if default_s > max_s:
        reader.fault(("deadlines", "default_s"), f"is more than deadlines.max_s, {max_s:g}")
    return DeadlineSettings(default_s, max_s)


def _control(reader: Reader, backends: Mapping[str, BackendSettings], source: str) -> BackendUrl | None:
    key = ("control", "url")
    given = reader.url(key, reader.text(("control", "password")))
    if reader.names("control") and given is not None:
        if given.scheme not in _CONTROL_SCHEMES:
            reader.fault(key, f"cannot be {given.scheme}", f"one of: {', '.join(_CONTROL_SCHEMES)}")
        used = {backend.url.path for backend in backends.values() if backend.url and backend.scheme == "sqlite"}
        if given.scheme == "sqlite" and given.path in used:
            reader.fault(key, "is the file of a backend", "the control store is a file of its own")
        return given
    if reader.place(key) is not None or reader.faults:
        return None
    main = backends.get(DEFAULT_BACKEND) or (next(iter(backends.values())) if len(backends) == 1 else None)
    if main is not None and main.url is not None and main.scheme in _CONTROL_SCHEMES:
        beside = main.url.path
        return main.url if beside is None else BackendUrl("sqlite", path=beside.with_name("control.sqlite"))
    way_out = '[control] with url = "postgresql://..." (it defaults to the main backend where that is SQL)'
    reader.faults.append(Fault(source, "control.url", "is missing", way_out))
    return None
