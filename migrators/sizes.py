"""The sizes a service grows through, as data: which kinds of backend serve each domain at each of them.

A size lists the kinds it is meant for, the best first. A domain on any of them is where it should be; on another kind it
moves, whether that is smaller or larger than the size needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from datalayer.settings import BackendSettings


class Size(StrEnum):
    """How many users a service has, about."""

    MVP = "mvp"
    K100 = "100k"
    M1 = "1m"
    M100 = "100m"


@dataclass(frozen=True, slots=True)
class KindOfBackend:
    """A kind of backend as a size asks for it. ``toml`` is what an operator would add, to be filled in."""

    name: str
    schemes: tuple[str, ...]
    toml: str
    sharded: bool = False

    def fits(self, backend: BackendSettings) -> bool:
        """Whether a configured backend is of this kind."""
        return backend.scheme in self.schemes and bool(backend.members) is self.sharded


MEMORY: Final = KindOfBackend("memory", ("memory",), '[backends.memory]\nurl = "memory://"')
SQLITE: Final = KindOfBackend("SQLite", ("sqlite",), '[backends.main]\nurl = "sqlite:///datalayer-data/main.sqlite"')
POSTGRES: Final = KindOfBackend(
    "Postgres", ("postgresql",), '[backends.postgres]\nurl = "postgresql://user@host/database"'
)
SHARDS: Final = KindOfBackend(
    "sharded Postgres",
    ("postgresql",),
    "[backends.shards]\n"
    'members = { s0 = "postgresql://user@host0/database", s1 = "postgresql://user@host1/database", '
    's2 = "postgresql://user@host2/database", s3 = "postgresql://user@host3/database" }',
    sharded=True,
)
CASSANDRA: Final = KindOfBackend(
    "Cassandra", ("cassandra",), '[backends.cassandra]\nurl = "cassandra://host/keyspace?local_dc=dc1&replication=3"'
)
REDIS: Final = KindOfBackend("Redis", ("redis",), '[backends.redis]\nurl = "redis://host/0"')
REDIS_CLUSTER: Final = KindOfBackend(
    "Redis cluster", ("redis+cluster",), '[backends.cluster]\nurl = "redis+cluster://host1,host2,host3"'
)
DYNAMODB: Final = KindOfBackend("DynamoDB", ("dynamodb",), '[backends.dynamodb]\nurl = "dynamodb://prefix"')
FILES: Final = KindOfBackend("a folder", ("file",), '[backends.files]\nurl = "file:///path"')
S3: Final = KindOfBackend("S3", ("s3",), '[backends.s3]\nurl = "s3://bucket"')
OPENSEARCH: Final = KindOfBackend(
    "OpenSearch",
    ("opensearch+https", "opensearch+http"),
    '[backends.opensearch]\nurl = "opensearch+https://host/prefix"',
)
KINDS: Final = (
    MEMORY,
    SQLITE,
    POSTGRES,
    SHARDS,
    CASSANDRA,
    REDIS,
    REDIS_CLUSTER,
    DYNAMODB,
    FILES,
    S3,
    OPENSEARCH,
)

_ONE_SQL: Final = (SQLITE, POSTGRES)
SIZES: Final[Mapping[Size, Mapping[str, tuple[KindOfBackend, ...]]]] = {
    Size.MVP: {
        "users": _ONE_SQL,
        "conversations": _ONE_SQL,
        "listings": _ONE_SQL,
        "messages": _ONE_SQL,
        "catalogue": _ONE_SQL,
        "sessions": (*_ONE_SQL, MEMORY),
        "presence": (MEMORY,),
        "typing": (MEMORY,),
        "media": (FILES, S3),
        "search": _ONE_SQL,
    },
    Size.K100: {
        "users": (POSTGRES,),
        "conversations": (POSTGRES,),
        "listings": (POSTGRES,),
        "messages": (POSTGRES,),
        "catalogue": (POSTGRES,),
        "sessions": (REDIS,),
        "presence": (REDIS,),
        "typing": (REDIS,),
        "media": (S3,),
        "search": (POSTGRES,),
    },
    Size.M1: {
        "users": (POSTGRES,),
        "conversations": (POSTGRES,),
        "listings": (POSTGRES,),
        "messages": (POSTGRES,),
        "catalogue": (POSTGRES,),
        "sessions": (REDIS_CLUSTER,),
        "presence": (REDIS_CLUSTER,),
        "typing": (REDIS_CLUSTER,),
        "media": (S3,),
        "search": (OPENSEARCH,),
    },
    Size.M100: {
        "users": (SHARDS,),
        "conversations": (SHARDS,),
        "listings": (SHARDS,),
        "messages": (CASSANDRA,),
        "catalogue": (SHARDS, POSTGRES),
        "sessions": (REDIS_CLUSTER, DYNAMODB),
        "presence": (REDIS_CLUSTER, DYNAMODB),
        "typing": (REDIS_CLUSTER, DYNAMODB),
        "media": (S3,),
        "search": (OPENSEARCH,),
    },
}
ADVICE: Final[Mapping[Size, tuple[str, ...]]] = {
    Size.MVP: (),
    Size.K100: (),
    Size.M1: (
        (
            "give the Postgres of users read replicas: replicas = [...] under its [backends.NAME] "
            "(docs/how-to/read-replicas.md), and PgBouncer before it (docs/how-to/pgbouncer.md)"
        ),
    ),
    Size.M100: ("partition what stays in one Postgres: partition_messages (docs/how-to/partitions.md)",),
}
"""What a size is served well by besides, which no migration brings about."""
ORDER: Final = (
    "users",
    "conversations",
    "listings",
    "sessions",
    "typing",
    "presence",
    "catalogue",
    "media",
    "messages",
    "search",
)
"""In which order domains move: what others refer to first, the largest late, what is derived from others last."""


def kind_of(backend: BackendSettings) -> str:
    """What a configured backend is called."""
    return next((kind.name for kind in KINDS if kind.fits(backend)), backend.scheme)
