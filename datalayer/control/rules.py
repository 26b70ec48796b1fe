"""What both control stores decide alike, as pure functions: globs, options, changes, and the text form of intents."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Final, cast

from datalayer.domains.record import Record
from datalayer.errors import LostLease, PreconditionFailed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from datalayer.control.base import Migration, ProcessInfo
    from datalayer.domains.record import FieldValue
    from datalayer.stores.base import Token

CHANGEABLE: Final = frozenset({"milestones", "options", "flips", "paused"})


def matches(info: ProcessInfo, patterns: Sequence[str]) -> bool:
    """Whether a glob matches the id, host, name or host:pid of a process."""
    names = (info.id, info.host, info.name, f"{info.host}:{info.pid}")
    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)


def acknowledges(info: ProcessInfo, domain: str, epoch: int) -> bool:
    """Whether a process has said that it serves this epoch of the domain, or a later one."""
    return info.epochs.get(domain, 0) >= epoch


def changed(migration: Migration, changes: Mapping[str, Any], now_us: int) -> Migration:
    """The migration with these fields set; options are merged, so that a coordinator never undoes an operator."""
    assert changes.keys() <= CHANGEABLE, f"a migration's {sorted(changes.keys() - CHANGEABLE)} cannot be set"
    fields = dict(changes)
    if "options" in fields:
        fields["options"] = merged(migration.options, fields["options"])
    if "milestones" in fields:
        fields["milestones"] = frozenset(fields["milestones"])
    return replace(migration, **fields, updated_us=now_us)


def with_options(migration: Migration, options: Mapping[str, Any], now_us: int) -> Migration:
    """The migration with an operator's options merged in; ``paused`` among them is the field of that name."""
    rest = {name: value for name, value in options.items() if name != "paused"}
    paused = bool(options.get("paused", migration.paused))
    return replace(migration, options=merged(migration.options, rest), paused=paused, updated_us=now_us)


def merged(stored: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options with those of the second replaced; None takes one away."""
    return {name: value for name, value in {**stored, **options}.items() if value is not None}


def spread_of(routing: bytes) -> int:
    """Where the intents of a routing key lie: 31 bits of its hash, by which replayers share the work."""
    return int.from_bytes(hashlib.sha256(routing).digest()[:4], "big") >> 1


def encode_payload(record: Record) -> str:
    """The fields of a record as JSON; bytes stand in a list, as hex. Version and tombstone have columns of their own."""
    return _dumps([[value.hex()] if isinstance(value, bytes) else value for value in record.fields])


def decode_payload(kind: str, key: bytes, version: int, deleted: int, payload: str) -> Record:
    """The record whose fields ``encode_payload`` wrote."""
    values = [bytes.fromhex(value[0]) if isinstance(value, list) else value for value in json.loads(payload)]
    return Record(kind, key, version, deleted == 1, cast("tuple[FieldValue, ...]", tuple(values)))


_dumps: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), check_circular=False).encode


def log_name(domain: str, attempt: int, side: str) -> str:
    """The name of the intents of one side of an attempt."""
    return f"{domain}/{attempt}/{side}"


def options_text(options: Mapping[str, Any]) -> str:
    """Options as the audit log shows them."""
    return json.dumps(dict(options), sort_keys=True)


def lost(token: Token) -> LostLease:
    """The error for a token that is not the newest."""
    return LostLease(f"another coordinator has taken over {token.domain}: token {token.value} is not the newest")


def rivals(domain: str) -> tuple[str, str]:
    """(whose unfinished migration excludes one of this domain besides its own, that of all whose names begin so).

    A domain moves only while none of its slot groups does, and a group only while its domain does not. A domain that
    rests at `target` with the way back open is no rival of its groups (``migrators.around``).
    """
    base = domain.partition("/")[0]
    return base, f"{base}/" if base == domain else f"{domain}/"


def already_migrating(domain: str, migration_id: str) -> PreconditionFailed:
    """The error for a second migration of a domain."""
    return PreconditionFailed(
        f"{domain} has an unfinished migration already: {migration_id}",
        hint="go on with it, or cancel or complete it first",
    )
