"""The statements of a program that knows the tables and nothing of the library."""

from typing import Any
from uuid import UUID

from datalayer.domains.messages import to_message
from datalayer.domains.record import Key, Record
from datalayer.domains.users import claim_of, to_user

Statement = tuple[str, list[Any]]
_IDS = {
    "message": ("conversation_id", "id"),
    "member": ("conversation_id", "user_id"),
    "listed": ("user_id", "conversation_id"),
    "session": ("user_id", "id"),
    "session_cut": ("user_id",),
    "media": ("owner_id", "id"),
    "object": ("owner_id", "content"),
    "user": ("id",),
    "conversation": ("id",),
}


def table(kind: str, attempt: int) -> str:
    base = {"listed": "listings", "media": "media", "object": "media_objects"}.get(kind, f"{kind}s")
    return base if attempt == 0 else f"{base}_{attempt}"


def upsert(record: Record, attempt: int, mark: str, *, binary_ids: bool = True) -> Statement:
    """Insert the row, or update its fields; ``mark`` is the driver's parameter style."""
    values = _values(record, binary_ids=binary_ids)
    keys = _key_columns(record.ident, binary_ids=binary_ids)
    columns = [*keys, *values]
    changes = ", ".join(f"{name} = excluded.{name}" for name in values if name != "version")
    statement = (
        f"INSERT INTO {table(record.kind, attempt)} ({', '.join(columns)}) VALUES ({', '.join([mark] * len(columns))}) "
        f"ON CONFLICT ({', '.join(name for name in keys if name != 'routing')}) DO UPDATE SET {changes}"
    )
    return statement, [*keys.values(), *values.values()]


def deletion(key: Key, attempt: int, mark: str, *, binary_ids: bool = True) -> Statement:
    """Remove the row."""
    keys = _key_columns(key, binary_ids=binary_ids)
    keys.pop("routing", None)
    where = " AND ".join(f"{name} = {mark}" for name in keys)
    return f"DELETE FROM {table(key[0], attempt)} WHERE {where}", list(keys.values())


def _key_columns(key: Key, *, binary_ids: bool) -> dict[str, Any]:
    kind, value = key
    columns = _IDS.get(kind)
    if columns is not None:
        halves = (value[:16], value[16:])
        return {name: _id(half, binary_ids) for name, half in zip(columns, halves, strict=False)}
    field, claimed = claim_of(value)
    return {"kind": field, "value": claimed, "routing": value[:16]}


def _values(record: Record, *, binary_ids: bool) -> dict[str, Any]:
    deleted: Any = int(record.deleted) if binary_ids else record.deleted
    rest = {"version": record.version, "deleted": deleted}
    if record.kind == "claim":
        return {"owner": _id(record.fields[0], binary_ids), **rest}
    if record.kind in {"member", "listed"}:
        return _membership_values(record, binary_ids=binary_ids) | rest
    if record.kind in {"media", "object"}:
        return _of_catalogue(record, binary_ids=binary_ids) | rest
    if record.kind in {"session", "session_cut"}:
        return _session_values(record, binary_ids=binary_ids) | rest
    if record.kind == "conversation":
        return dict(zip(("title", "kind", "updated_at", "attributes"), record.fields, strict=True)) | rest
    names: tuple[str, ...] = ("sender_id", "body", "kind", "thread_id", "attachments", "edited_at", "attributes")
    if record.kind == "user":
        names = ("username", "email", "display_name", "status", "updated_at", "attributes", "region")
        assert to_user(record).id.bytes == record.key
    values: dict[str, Any] = dict(zip(names, record.fields, strict=True)) | rest
    if record.kind == "message":
        message = to_message(record)
        values["sender_id"] = _id(record.fields[0], binary_ids)
        values["thread_id"] = _id(record.fields[3], binary_ids)
        if not binary_ids:
            values["attachments"] = list(message.attachments)
    return values


def _membership_values(record: Record, *, binary_ids: bool) -> dict[str, Any]:
    if record.kind == "member":
        role, joined_at, read_up_to, listed = record.fields
        read = _id(read_up_to, binary_ids)
        return {"role": role, "joined_at": joined_at, "read_up_to": read, "listed": listed}
    role, joined_at, read_up_to, newest, last_activity, shown = record.fields
    ids = {"read_up_to": _id(read_up_to, binary_ids), "newest": _id(newest, binary_ids)}
    return {"role": role, "joined_at": joined_at, **ids, "last_activity": last_activity, "shown": shown}


def _of_catalogue(record: Record, *, binary_ids: bool) -> dict[str, Any]:
    names: tuple[str, ...] = ("sha256", "size", "content_type", "name", "held", "refs", "delete_after")
    if record.kind == "media":
        names = ("state", "upload", "sha256", "size", "content_type", "filename", "attributes")
    values: dict[str, Any] = dict(zip(names, record.fields, strict=True))
    uuid = "upload" if record.kind == "media" else "name"
    return values | {uuid: _id(values[uuid], binary_ids)}


def _session_values(record: Record, *, binary_ids: bool) -> dict[str, Any]:
    if record.kind == "session_cut":
        return dict(zip(("mark", "expires_at"), record.fields, strict=True))
    times = dict(zip(("created_at", "mark", "ends_at", "expires_at"), record.fields[1:5], strict=True))
    return {"proof": _id(record.fields[0], binary_ids), **times, "attributes": record.fields[5]}


def _id(value: Any, binary: bool) -> Any:
    return value if binary or value is None else UUID(bytes=value)
