"""One line of an import as a mutation: every id follows from the line alone, so that a repeat is the same write."""

from __future__ import annotations

import hashlib
import json
import math
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid5

from datalayer.domains.messages import Append
from datalayer.domains.record import check_text
from datalayer.errors import InvalidArgument
from datalayer.ids import FUTURE_LIMIT_US, NAMESPACE, imported_message_id
from datalayer.types import to_us

if TYPE_CHECKING:
    from uuid import UUID

KEYS: Final = frozenset({"conversation", "id", "sender", "sent_at", "body"})
_NEEDED: Final = ("conversation", "sender", "sent_at", "body")
_NAMES_KEPT: Final = 1 << 16
_EARLY_S: Final = 253_402_300_800  # seconds of the year 10000


def conversation_id(name: object) -> UUID:
    """The id of an imported conversation: a UUIDv5 of its name (any JSON value)."""
    return _named("conversation", _text(name))


def sender_id(name: object) -> UUID:
    """The id of an imported sender: a UUIDv5 of its name (any JSON value)."""
    return _named("sender", _text(name))


def message_of(raw: bytes, *, body_max_bytes: int, now_us: int) -> tuple[Append, frozenset[str]]:
    """The append of a line, and the keys of it that are not imported.

    Raises InvalidArgument, in one sentence without the line's text.
    """
    fields = json_object(raw)
    missing = [name for name in _NEEDED if fields.get(name) is None]
    if missing:
        raise InvalidArgument(f"{' and '.join(missing)} missing")
    body = check_text(fields["body"], "body", body_max_bytes)
    conversation = checked_text("conversation", fields["conversation"])
    sender = checked_text("sender", fields["sender"])
    sent_at_us = time_us(fields["sent_at"], now_us)
    foreign = fields.get("id")
    if foreign is None:
        parts = json.dumps([conversation, sender, sent_at_us, body])
        foreign = hashlib.blake2b(parts.encode(), digest_size=16).hexdigest()
    elif isinstance(foreign, bool) or not isinstance(foreign, int):
        foreign = checked_text("id", foreign)
    append = Append(
        _named("conversation", conversation),
        imported_message_id(conversation, foreign, sent_at_us),
        _named("sender", sender),
        body,
        fresh=True,
    )
    return append, frozenset(fields.keys() - KEYS)


@lru_cache(maxsize=_NAMES_KEPT)
def _named(what: str, name: str) -> UUID:
    return uuid5(NAMESPACE, f"{what}:{name}")


def json_object(raw: bytes) -> dict[str, Any]:
    """The object that a line holds; InvalidArgument."""
    try:
        fields = json.loads(raw.decode())
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise InvalidArgument(f"not valid JSON at character {error.pos + 1} ({error.msg})") from None
    except RecursionError:
        raise InvalidArgument("JSON nested too deeply") from None
    except ValueError:
        raise InvalidArgument("a number with too many digits") from None
    if not isinstance(fields, dict):
        raise InvalidArgument(f"a JSON object is expected, not {type(fields).__name__}")
    return fields


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, separators=(",", ":"))


def checked_text(what: str, value: object) -> str:
    """Any JSON value as text that can be hashed: text itself, else its canonical JSON; InvalidArgument."""
    text = _text(value)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidArgument(f"{what} contains a lone surrogate, which is not valid Unicode") from None
    return text


def time_us(value: object, now_us: int, what: str = "sent_at") -> int:
    """Microseconds since 1970 of epoch seconds, or of an ISO time (UTC where it names no zone)."""
    if isinstance(value, str):
        time = _iso_us(value, what)
    elif isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InvalidArgument(f"{what} is neither seconds since 1970 nor an ISO time")
    elif abs(value) > _EARLY_S:
        raise InvalidArgument(f"{what} is beyond the year 9999; seconds since 1970 are expected, not milliseconds")
    else:
        time = value * 1_000_000 if isinstance(value, int) else round(value * 1_000_000)
    if time < 0:
        raise InvalidArgument(f"{what} lies before 1970")
    if time > now_us + FUTURE_LIMIT_US:
        raise InvalidArgument(f"{what} lies more than 60 s in the future")
    return time


def _iso_us(value: str, what: str) -> int:
    try:
        moment = datetime.fromisoformat(value.strip())
        return to_us(moment if moment.tzinfo else moment.replace(tzinfo=UTC))
    except (ValueError, OverflowError):
        raise InvalidArgument(f"{what} is no ISO time") from None
