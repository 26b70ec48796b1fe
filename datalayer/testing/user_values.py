"""Users that describe themselves: a name tells its number, and the attributes prove who wrote the row and what it set.

Every username and e-mail address of a workload is made from a number, and the number can be read back from any
spelling of it, so that a ledger records numbers. A write may leave the unique values as they are; its hash then does
not cover them, and the attributes say so. What is unique is compared without case and Unicode form: ``disguise`` spells
a name in other ways, ``plain`` undoes that by the rule in the documentation, not by the library's code.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from datalayer.testing.values import TOKEN_BYTES, Torn

if TYPE_CHECKING:
    import random
    from collections.abc import Mapping

    from datalayer.types import User

NONE: Final = 0
"""The number of no e-mail address at all."""
UNCHANGED: Final = -1
"""In place of a number: the write leaves the value as it is."""
USERS: Final = b"users".ljust(16, b"\0")
"""First half of a user's key in a ledger; the second is its id."""
FIELDS: Final = ("username", "email")
_NOTE_DIGITS: Final = 16
_FIRST: Final = (  # noqa: SIM905 - words, not a list of one-word strings
    "anna ben carla david elena felix greta hugo ines jakob kira liam maria noah olga paul rosa samuel tina umar vera "
    "walter xenia yusuf zoe aisha björn chloé dmitri eun-ji françois gülay håkon inês jürgen katarína lê mirjam niño "
    "olívia øyvind priya rené sørina tomáš ülkü wei yaşar zoltán ивана мария νίκος יעל 美咲"
).split(" ")
_LAST: Final = (  # noqa: SIM905 - as above
    "smith johnson müller schmidt garcía lópez rossi bianchi dubois lefèvre nowak kowalski novák svoboda horváth nagy "
    "ivanov petrov papadopoulos çelik demir khan patel singh nguyen tran wang li zhang kim park lee sato suzuki "
    "tanaka silva santos oliveira jensen hansen andersson nilsson virtanen korhonen jansen de-vries peeters groß strauß "
    "o'brien murphy okafor mensah diallo haddad nasser cohen levi weiß"
).split(" ")
_HOSTS: Final = ("example.org", "example.com", "mail.example.net", "post.example.de", "correo.example.es")
_NUMBER: Final = {"username": re.compile(r"([0-9]+)$"), "email": re.compile(r"([0-9]+)@")}


def _person(number: int) -> str:
    # Neighbouring numbers are to be different people: a multiplication spreads them (Knuth, 6.4).
    mixed = number * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
    return f"{_FIRST[(mixed >> 40) % len(_FIRST)]}.{_LAST[(mixed >> 20) % len(_LAST)]}{number}"


def username_of(number: int) -> str:
    """The username of a number from 1 on."""
    return _person(number)


def email_of(number: int) -> str | None:
    """The e-mail address of a number; None for ``NONE``."""
    return None if number == NONE else f"{_person(number)}@{_HOSTS[number % len(_HOSTS)]}"


def spelt(field: str, number: int) -> str | None:
    """The value of a field by its number."""
    return username_of(number) if field == "username" else email_of(number)


def plain(text: str) -> str:
    """The form under which two spellings are one name: NFKC and case-folded."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text.strip()).casefold())


def number_of(field: str, text: str | None) -> int:
    """The number of a name in any spelling. Raises Torn when it is none of ours."""
    if text is None:
        return NONE
    found = _NUMBER[field].search(plain(text))
    number = int(found[1]) if found else NONE
    wanted = spelt(field, number)
    if not number or wanted is None or plain(wanted) != plain(text):
        raise Torn(f"{field} is of no number")
    return number


def disguise(text: str, rng: random.Random) -> str:
    """Another spelling of the same name, now and then."""
    draw = rng.random()
    if draw < 0.1:
        return text.upper()
    if draw < 0.2:
        return unicodedata.normalize("NFD", text)
    if draw < 0.3:
        return "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text)
    return f" {text}" if draw < 0.35 else text


@dataclass(frozen=True, slots=True)
class Sets:
    """What a write does to the unique values: numbers, ``UNCHANGED``, or ``NONE`` for no e-mail address."""

    username: int = UNCHANGED
    email: int = UNCHANGED

    @property
    def note(self) -> str:
        """As it stands in a ledger."""
        return _noted(self.username) + _noted(self.email)


def _noted(number: int) -> str:
    return "-" * _NOTE_DIGITS if number == UNCHANGED else f"{number:0{_NOTE_DIGITS}x}"


def sets_of(note: str) -> Sets | None:
    """What a note tells; None where there is none."""
    if len(note) != 2 * _NOTE_DIGITS:
        return None
    halves = note[:_NOTE_DIGITS], note[_NOTE_DIGITS:]
    return Sets(*(UNCHANGED if half.startswith("-") else int(half, 16) for half in halves))


def names_of(user: User) -> Sets:
    """The numbers of a stored user's names. Raises Torn."""
    return Sets(number_of("username", user.username), number_of("email", user.email))


@dataclass(frozen=True, slots=True)
class UserValue:
    """What one write stores beside the unique values, and the 16 bytes that identify it."""

    token: bytes
    display_name: str
    attributes: Mapping[str, Any]


def compose_user(key: bytes, process: str, number: int, sets: Sets) -> UserValue:
    """The value of operation ``number`` of a process; ``key`` as in the ledger."""
    display_name = f"{process} {number}"
    token = _token(key, process, number, display_name, sets)
    attributes = {
        "process": process,
        "number": number,
        "username": sets.username,
        "email": sets.email,
        "hash": token.hex(),
    }
    return UserValue(token, display_name, attributes)


def user_token(user: User) -> bytes:
    """The token of a stored user, after recomputing it from everything else. Raises Torn.

    A user that does not describe itself (imported, or there before the workload) is identified by its content.
    """
    key = USERS + user.id.bytes
    attributes = user.attributes
    names = names_of(user)
    if "hash" not in attributes:
        return _token(key, "", 0, user.display_name, names)
    process, number, username, email = (attributes.get(name) for name in ("process", "number", "username", "email"))
    if not (isinstance(process, str) and all(isinstance(one, int) for one in (number, username, email))):
        raise Torn("attributes lack their parts")
    sets = Sets(username, email)  # type: ignore[arg-type]  # looked at just above
    for field in FIELDS:
        if getattr(sets, field) not in {UNCHANGED, getattr(names, field)}:
            raise Torn(f"{field} is not the one written")
    token = _token(key, process, number, user.display_name, sets)  # type: ignore[arg-type]
    if token.hex() != attributes["hash"]:
        raise Torn("value does not match its hash")
    return token


def _token(key: bytes, process: str, number: int, display_name: str, sets: Sets) -> bytes:
    digest = hashlib.blake2b(digest_size=TOKEN_BYTES)
    digest.update(key + f"{process}.{number}:{sets.username}:{sets.email}:".encode())
    digest.update(display_name.encode())
    return digest.digest()
