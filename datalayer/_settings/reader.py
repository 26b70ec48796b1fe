"""Typed values out of flat ones: every key is known, every value of its type, every mistake collected."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from datalayer._settings.faults import Fault, SettingsError, choice, sayable
from datalayer._settings.sources import SECTIONS, Key, Value, read_secret
from datalayer._settings.url import BackendUrl, UrlFault, parse_url, takes_login

_ANY: Final = "*"
_KNOWN: Final[tuple[Key, ...]] = (
    ("backends", _ANY, "url"),
    ("backends", _ANY, "password"),
    ("backends", _ANY, "replicas"),
    ("backends", _ANY, "pool_max"),
    ("backends", _ANY, "members", _ANY),
    ("backends", _ANY, "weights", _ANY),
    ("backends", _ANY, "capacity", _ANY),
    ("backends", _ANY, "regions", _ANY),
    ("backends", _ANY, "slot_groups"),
    ("backends", _ANY, "partition_messages"),
    ("backends", _ANY, "search"),
    ("backends", _ANY, "cdn_url"),
    ("routes", _ANY),
    ("control", "url"),
    ("control", "password"),
    ("limits", "body_max_bytes"),
    ("limits", "members_max"),
    ("limits", "media_max_bytes"),
    ("limits", "media_types"),
    ("deadlines", "default_s"),
    ("deadlines", "max_s"),
)
_SECRET_KEYS: Final = ("url", "password")


class Reader:
    """Takes typed values out of the flat ones and collects what is wrong with them."""

    def __init__(self, values: dict[Key, Value]) -> None:
        self.faults: list[Fault] = []
        self._values: dict[Key, Value] = {}
        for key, value in values.items():
            self._values.update([self._opened(key, value)])

    def _opened(self, key: Key, value: Value) -> tuple[Key, Value]:
        """A secret's ``_file`` key stands for the content of that file."""
        base = key[-1].removesuffix("_file")
        target = (*key[:-1], base)
        if base == key[-1] or base not in _SECRET_KEYS or not isinstance(value.raw, str):
            return key, value
        try:
            path = Path(value.source.directory, value.raw)
            return target, Value(read_secret(path, place=value.place, key=".".join(key)), value.source, value.key)
        except SettingsError as error:
            self.faults.extend(error.faults)
            return target, Value(None, value.source, value.key)

    def place(self, key: Key) -> str | None:
        value = self._values.get(key)
        return value.place if value else None

    def fault(self, key: Key, reason: str, way_out: str | None = None) -> None:
        value = self._values.get(key) or self._below(key)
        place = value.source.place(value.key if key in self._values else key) if value else ""
        self.faults.append(Fault(place, ".".join(map(sayable, key)), reason, way_out))

    def faulty(self, key: Key) -> bool:
        """Whether a mistake at or below ``key`` was found."""
        dotted = ".".join(map(sayable, key))
        return any(f"{fault.key}.".startswith(f"{dotted}.") for fault in self.faults)

    def _below(self, key: Key) -> Value | None:
        return next((value for full, value in self._values.items() if full[: len(key)] == key), None)

    def names(self, *key: str) -> list[str]:
        """Names of the entries of a table, in the order given."""
        depth = len(key)
        return list(dict.fromkeys(full[depth] for full in self._values if full[:depth] == key and len(full) > depth))

    def check_keys(self) -> None:
        for key, value in self._values.items():
            if any(_matches(key, known) for known in _KNOWN):
                continue
            table = any(_matches(key, known[: len(key)]) for known in _KNOWN)
            if table and value.raw != {}:
                self.fault(key, "must be a table", f"[{'.'.join(map(sayable, key))}]")
            elif not table:
                self._unknown(key)

    def _unknown(self, key: Key) -> None:
        for depth in range(len(key)):
            known = {
                pattern[depth] for pattern in _KNOWN if len(pattern) > depth and _matches(key[:depth], pattern[:depth])
            }
            if not known:
                self.fault(key[:depth], "must be a plain value, not a table")
                return
            if key[depth] not in known and _ANY not in known:
                self.fault(key[: depth + 1], "is not a known key", choice(key[depth], known))
                return

    def text(self, key: Key) -> str | None:
        value = self._values.get(key)
        if value is None or value.raw is None:  # None: its file could not be read, which has been said
            return None
        if not isinstance(value.raw, str) or not value.raw:
            self.fault(key, "must be text and not empty")
            return None
        return value.raw

    def url(self, key: Key, password: str | None) -> BackendUrl | None:
        text = self.text(key)
        return None if text is None else self._url(key, text, password)

    def _url(self, key: Key, text: str, password: str | None) -> BackendUrl | None:
        parsed = parse_url(text, directory=self._values[key].source.directory)
        if isinstance(parsed, UrlFault):
            self.fault(key, parsed.reason, parsed.way_out)
            return None
        if password is None:
            return parsed
        if not takes_login(parsed.scheme):
            self.fault((*key[:2], "password"), f"is not known to {parsed.scheme}", "remove it")
        return parsed if parsed.password is not None else parsed.with_password(password)

    def urls(self, key: Key, password: str | None) -> tuple[BackendUrl, ...]:
        """A list of URLs; in an environment variable they are separated by white space."""
        raw = self._values[key].raw if key in self._values else []
        items = raw.split() if isinstance(raw, str) else raw
        if not isinstance(items, list | tuple) or not all(isinstance(item, str) for item in items):
            self.fault(key, "must be a list of URLs", '["...", "..."]')
            return ()
        parsed = [self._url(key, item, password) for item in items]
        return tuple(url for url in parsed if url is not None)

    def texts(self, key: Key) -> tuple[str, ...]:
        """A list of texts; in an environment variable they are separated by white space."""
        raw = self._values[key].raw if key in self._values else []
        items = raw.split() if isinstance(raw, str) else raw
        if not isinstance(items, list | tuple) or not all(isinstance(item, str) and item for item in items):
            self.fault(key, "must be a list of texts", '["...", "..."]')
            return ()
        return tuple(items)

    def number(self, key: Key, default: float, bounds: tuple[float, float]) -> float:
        return self._number(key, default, bounds, float)

    def whole(self, key: Key, default: int, bounds: tuple[int, int]) -> int:
        return int(self._number(key, default, bounds, int))

    def _number(self, key: Key, default: float, bounds: tuple[float, float], kind: type[int | float]) -> float:
        raw = self._values[key].raw if key in self._values else default
        lowest, highest = bounds
        said = f"must be a {'whole ' if kind is int else ''}number from {lowest:,} to {highest:,}"
        if isinstance(raw, str):  # of an environment variable
            raw = _parsed_number(raw, kind)
        if isinstance(raw, bool) or not isinstance(raw, int if kind is int else (int, float)):
            self.fault(key, said)
            return default
        if not lowest <= raw <= highest:
            self.fault(key, said)
            return default
        return raw


def _parsed_number(text: str, kind: type[int | float]) -> float | None:
    try:
        return kind(text)
    except ValueError:
        return None


def _matches(key: Key, pattern: Key) -> bool:
    return len(key) == len(pattern) and all(want in (_ANY, got) for got, want in zip(key, pattern, strict=True))


assert {key[0] for key in _KNOWN} == set(SECTIONS)
