"""Where settings come from - TOML text, environment variables, a mapping - as flat values that know their place."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Protocol

from datalayer._settings.faults import Fault, SettingsError, choice, sayable

Key = tuple[str, ...]
SECTIONS: Final = ("backends", "control", "deadlines", "limits", "routes")
ENV_PREFIX: Final = "DATALAYER_"
_SECRET_FILE_BYTES_MAX: Final = 65_536


class Source(Protocol):
    """Names the place of a key."""

    def place(self, key: Key) -> str: ...

    @property
    def directory(self) -> Path: ...


@dataclass(frozen=True, slots=True)
class Value:
    """One raw value and where it stands. The value is kept out of the text forms: it may be a secret."""

    raw: Any = field(repr=False)
    source: Source
    key: Key

    @property
    def place(self) -> str:
        return self.source.place(self.key)


def flat(document: Mapping[str, Any], at: Key = ()) -> Iterator[tuple[Key, Any]]:
    """Every leaf with its full key; an empty table is a leaf."""
    for name, value in document.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, (*at, str(name)))
        else:
            yield (*at, str(name)), value


@dataclass(frozen=True)
class MappingSource:
    """Settings given as a mapping by a program."""

    document: Mapping[str, Any] = field(repr=False)
    directory: Path
    name: str = "settings"

    def place(self, key: Key) -> str:
        """A mapping has no lines: its name."""
        return self.name

    def values(self) -> dict[Key, Value]:
        """Every leaf of the mapping."""
        return {key: Value(raw, self, key) for key, raw in flat(self.document)}


@dataclass(frozen=True)
class TomlSource:
    """A TOML file. ``name`` is how messages call it."""

    text: str = field(repr=False)
    directory: Path
    name: str

    @classmethod
    def read(cls, path: Path, *, name: str | None = None) -> TomlSource:
        """The file at ``path``.

        Raises:
            SettingsError: it cannot be read.
        """
        name = name or str(path)
        try:
            return cls(path.read_text(encoding="utf-8"), path.absolute().parent, name)
        except FileNotFoundError:
            fault = Fault(name, "", "there is no such file", "datalayer init writes one")
        except UnicodeDecodeError as error:
            line = error.object[: error.start].count(b"\n") + 1
            fault = Fault(f"{name}:{line}", "", "the file is not UTF-8 text")
        except OSError as error:
            fault = Fault(name, "", f"the file cannot be read: {error.strerror}")
        raise SettingsError([fault])

    def values(self) -> dict[Key, Value]:
        """Every leaf of the file.

        Raises:
            SettingsError: the file is not TOML.
        """
        try:
            return {key: Value(raw, self, key) for key, raw in flat(tomllib.loads(self.text))}
        except tomllib.TOMLDecodeError as error:
            # The parser's sentence may quote a key, which in a mangled line may be a secret: only the place is kept.
            position = re.search(r"\(at line (\d+)", str(error))
        line = int(position[1]) if position else self.text.count("\n") + 1
        raise SettingsError(
            [Fault(f"{self.name}:{line}", "", "this line is not valid TOML", 'text stands in quotes: url = "..."')]
        )

    def place(self, key: Key) -> str:
        """``file:line``: of the key, or of the nearest table or key above it that the file has."""
        for length in range(len(key), 0, -1):
            if line := self._lines.get(key[:length]):
                return f"{self.name}:{line}"
        return self.name

    @cached_property
    def _lines(self) -> dict[Key, int]:
        """Line of each key's first appearance.

        The parser gives no positions, so growing prefixes of the file are parsed: a key stands on the first line
        after the last prefix that parsed without it. Quadratic, and only reached to say a place.
        """
        lines: dict[Key, int] = {}
        text = self.text.splitlines()
        start = 1
        for count in range(1, len(text) + 1):
            try:
                document = tomllib.loads("\n".join(text[:count]))
            except tomllib.TOMLDecodeError:
                continue  # inside a value of several lines
            for key, _ in flat(document):
                for length in range(len(key), 0, -1):
                    lines.setdefault(key[:length], start)
            start = count + 1
        return lines


@dataclass(frozen=True)
class EnvironmentSource:
    """``DATALAYER_SECTION__NAME__KEY`` variables; ``..._FILE`` names a file that holds the value.

    Names without a double underscore (DATALAYER_CONFIG, DATALAYER_EMBEDDED) are not settings.
    """

    environ: Mapping[str, str] = field(repr=False)
    directory: Path

    def place(self, key: Key) -> str:
        """The variable that gives the key."""
        return self._names.get(key, "environment")

    def get(self, name: str) -> str:
        """A variable that is not a setting, empty where it is not set."""
        return self.environ.get(name, "")

    @cached_property
    def _names(self) -> dict[Key, str]:
        names: dict[Key, str] = {}
        for name in sorted(self.environ):
            if name.startswith(ENV_PREFIX) and "__" in name:
                names[tuple(part.lower() for part in name.removeprefix(ENV_PREFIX).split("__"))] = name
        return names

    def values(self, known: Mapping[Key, Value]) -> dict[Key, Value]:
        """Every setting in the environment; ``known`` names (of a file) may hold dashes, variables cannot.

        Raises:
            SettingsError: a variable names no section, a file cannot be read, or a key is given twice.
        """
        found: dict[Key, Value] = {}
        spelt = {part.replace("-", "_"): part for key in known for part in key}
        for key, name in self._names.items():
            if key[0] not in SECTIONS:
                raise SettingsError([_unknown_section(name, key)])
            raw, target = self.environ[name], key
            if key[-1].endswith("_file") and len(key[-1]) > len("_file"):
                target = (*key[:-1], key[-1].removesuffix("_file"))
                raw = read_secret(Path(self.directory, raw), place=name, key=".".join(target))
            final = (target[0], *(spelt.get(part, part) for part in target[1:]))
            if final in found:
                raise SettingsError([Fault(name, ".".join(final), "is given twice", f"remove {name} or its twin")])
            found[final] = Value(raw, self, key)
        return found


def _unknown_section(name: str, key: Key) -> Fault:
    way_out = choice(key[0], SECTIONS, prefix=ENV_PREFIX)
    return Fault("environment", sayable(name), "is not a setting", re.sub(rf"{ENV_PREFIX}(\w+)", _upper, way_out))


def _upper(match: re.Match[str]) -> str:
    return f"{ENV_PREFIX}{match[1].upper()}__..."


def read_secret(path: Path, *, place: str, key: str) -> str:
    """The text of a secret file, without its last line end.

    Raises:
        SettingsError: it cannot be read, or is far too long to be a secret.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_SECRET_FILE_BYTES_MAX + 1)
        if len(content) <= _SECRET_FILE_BYTES_MAX:
            return content.decode("utf-8").removesuffix("\n").removesuffix("\r")
        reason = "comes from a file of more than 64 KiB"
    except OSError as error:
        reason = f"comes from a file that cannot be read: {error.strerror}"
    except UnicodeDecodeError:
        reason = "comes from a file that is not UTF-8 text"
    raise SettingsError([Fault(place, key, reason)])
