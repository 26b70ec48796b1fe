"""Records that are easy to get wrong, made from a seeded random source."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final
from uuid import UUID

from datalayer.domains import catalogue, users
from datalayer.domains.conversations import ROLES, member_key
from datalayer.domains.listings import listed_key
from datalayer.domains.messages import message_key
from datalayer.domains.record import Record
from datalayer.domains.registry import DOMAINS
from datalayer.domains.search import sort_name
from datalayer.domains.sessions import session_key
from datalayer.domains.words import TEXT_MAX, WORD_MAX, indexed
from datalayer.ids import id_time_us, uuid7_at

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from datalayer.testing.contract.control_fixture import ControlFixture
    from datalayer.testing.contract.fixture import StoreFixture

TEXTS: Final[dict[str, str]] = {
    "empty": "",
    "spaces": "  two before, three after   ",
    "white space": "\t\n\r\u00a0\u2028",
    "the word null": "null",
    "the word NULL": "NULL",
    "quotes": "'; DROP TABLE messages; --\"`$$ %s ? {} \\",
    "astral": "\U0001f469\u200d\U0001f680 \U0010fffd \U0001d54f",
    "composed": "caf\u00e9 \u212b \uac00",
    "decomposed": "cafe\u0301 A\u030a \u1100\u1161",
    "right to left": "\u05e9\u05dc\u05d5\u05dd \u202eabc",
    "controls": "\x01\x02\x1b[31m\x7f\x85",
    "byte order mark": "\ufeffx\ufffe\uffff",
    "backslash u": "\\u0000 \\ud800",
    "number": "1e22",
}
"""Texts that every store keeps character by character."""
JSON_TEXTS: Final[dict[str, str]] = {
    "empty object": "{}",
    "negative zero": '{"x":-0.0}',
    "large float": '{"x":1e+22,"y":1.7976931348623157e+308}',
    "small float": '{"x":5e-324,"y":0.1}',
    "big integer": '{"x":123456789012345678901234567890,"y":9007199254740993}',
    "null inside": '{"x":null,"y":"null","z":""}',
    "key order": '{"a":1,"b":2,"\u00e9":3}',
    "nested": '{"a":{"b":[1,[2,{"c":[]}]],"d":{}}}',
    "escapes": '{"a":"\\\\ \\" \\n \\u0001","\U0001f469":"\U0001f680"}',
}
"""Attributes in canonical form: a copy must be equal to the bit."""
WEEK_US: Final = 7 * 86_400_000_000
LONE_SURROGATE: Final = "a lone \ud800 surrogate"


class Maker:
    """Makes records of a domain. ``now_us``: the clock at the start, from which versions are counted."""

    def __init__(self, fixture: StoreFixture | ControlFixture) -> None:
        self.random = fixture.random
        self.now_us = fixture.clock.now_us()
        self._regions: Sequence[str | None] = (None, *getattr(fixture, "regions", ()))
        self._late_us = self.now_us

    def id(self, at_us: int | None = None) -> UUID:
        """A random id of a time (default: some time of the last year)."""
        year_us = 365 * 86_400_000_000
        time_us = self.now_us - self.random.randrange(1_000_000, year_us) if at_us is None else at_us
        return uuid7_at(time_us, self.random.getrandbits(62))

    def ids(self, number: int, *, from_us: int, step_us: int) -> list[UUID]:
        """Ids of rising times."""
        return [self.id(from_us + at * step_us) for at in range(number)]

    def message(
        self,
        conversation: UUID | None = None,
        id: UUID | None = None,
        *,
        version: int | None = None,
        body: str = "hello",
        deleted: bool = False,
        attributes: str = "{}",
        thread: UUID | None = None,
        attachments: Sequence[UUID] = (),
        edited_at: int | None = None,
        kind: str = "text",
    ) -> Record:
        """A message's record."""
        own = self.id() if id is None else id
        key = message_key(self.id() if conversation is None else conversation, own)
        at = id_time_us(own) if version is None else version
        files = b"".join(item.bytes for item in attachments)
        thread_bytes = None if thread is None else thread.bytes
        fields = (self.id().bytes, "" if deleted else body, kind, thread_bytes, files, edited_at, attributes)
        return Record("message", key, at, deleted, fields)

    def user(
        self,
        id: UUID | None = None,
        *,
        version: int | None = None,
        username: str | None = None,
        email: str | None = None,
        display_name: str = "Ann",
        deleted: bool = False,
        attributes: str = "{}",
        region: str | None = None,
    ) -> Record:
        """A user's record."""
        own = self.id() if id is None else id
        at = id_time_us(own) if version is None else version
        name = f"ann-{self.random.getrandbits(40):x}" if username is None else username
        status = "deleted" if deleted else "active"
        region = self.random.choice(self._regions) if region is None else region
        return Record("user", own.bytes, at, deleted, (name, email, display_name, status, at, attributes, region))

    def claim(self, value: str | None = None, *, version: int | None = None, deleted: bool = False) -> Record:
        """A claim's record."""
        name = f"ann-{self.random.getrandbits(40):x}" if value is None else value
        at = self.now_us if version is None else version
        field = self.random.choice(("username", "email"))
        return users.claim_record(users.claim_key(field, name), self.id(), at, deleted=deleted)

    def conversation(
        self,
        id: UUID | None = None,
        *,
        version: int | None = None,
        title: str = "Lunch",
        kind: str = "group",
        deleted: bool = False,
        attributes: str = "{}",
    ) -> Record:
        """A conversation's record."""
        own = self.id() if id is None else id
        at = id_time_us(own) if version is None else version
        return Record("conversation", own.bytes, at, deleted, (title, kind, at, attributes))

    def member(
        self,
        conversation: UUID | None = None,
        user: UUID | None = None,
        *,
        version: int | None = None,
        role: str = "member",
        read_up_to: UUID | None = None,
        listed: int = 0,
        deleted: bool = False,
    ) -> Record:
        """A member's record."""
        key = member_key(self.id() if conversation is None else conversation, self.id() if user is None else user)
        at = self.now_us if version is None else version
        read = None if read_up_to is None else read_up_to.bytes
        return Record("member", key, at, deleted, (role, at, read, listed))

    def listed(
        self,
        user: UUID | None = None,
        conversation: UUID | None = None,
        *,
        version: int | None = None,
        role: str = "member",
        read_up_to: UUID | None = None,
        newest: UUID | None = None,
        last_activity: int = 0,
        shown: int = 1,
        deleted: bool = False,
    ) -> Record:
        """The record of an entry of a user's list."""
        key = listed_key(self.id() if user is None else user, self.id() if conversation is None else conversation)
        at = self.now_us if version is None else version
        ids = [None if one is None else one.bytes for one in (read_up_to, newest)]
        return Record("listed", key, at, deleted, (role, at, *ids, last_activity, shown))

    def message_doc(
        self,
        conversation: UUID | None = None,
        id: UUID | None = None,
        *,
        version: int | None = None,
        body: str = "hello",
        sender: UUID | None = None,
        deleted: bool = False,
    ) -> Record:
        """The document of a message; ``body`` is words already."""
        own = self.id() if id is None else id
        key = message_key(self.id() if conversation is None else conversation, own)
        at = id_time_us(own) if version is None else version
        return Record("message_doc", key, at, deleted, ((self.id() if sender is None else sender).bytes, body))

    def user_doc(
        self,
        id: UUID | None = None,
        *,
        version: int | None = None,
        username: str | None = None,
        names: str | None = None,
        deleted: bool = False,
    ) -> Record:
        """The document of a user."""
        own = self.id() if id is None else id
        at = id_time_us(own) if version is None else version
        name = f"ann_{self.random.getrandbits(40):x}" if username is None else username
        return Record("user_doc", own.bytes, at, deleted, (name, name if names is None else names))

    def media(
        self,
        owner: UUID | None = None,
        id: UUID | None = None,
        *,
        version: int | None = None,
        upload: UUID | None = None,
        sha256: str | None = None,
        size: int = 3,
        content_type: str = "image/png",
        filename: str | None = None,
        deleted: bool = False,
        attributes: str = "{}",
    ) -> Record:
        """The record of an item of media; with ``upload`` one that waits for its bytes."""
        key = catalogue.media_key(self.id() if owner is None else owner, self.id() if id is None else id)
        at = self.now_us if version is None else version
        state = catalogue.READY if upload is None else catalogue.PENDING
        content = self.sha256() if sha256 is None else sha256
        name = None if upload is None else upload.bytes
        return Record("media", key, at, deleted, (state, name, content, size, content_type, filename, attributes))

    def object(
        self,
        owner: UUID | None = None,
        *,
        version: int | None = None,
        sha256: str | None = None,
        size: int = 3,
        content_type: str = "image/png",
        name: UUID | None = None,
        held: str = "files:0",
        refs: int = 1,
        delete_after: int | None = None,
        deleted: bool = False,
    ) -> Record:
        """The record of an object of media."""
        content = self.sha256() if sha256 is None else sha256
        key = catalogue.object_key(self.id() if owner is None else owner, content)
        at = self.now_us if version is None else version
        own = self.id() if name is None else name
        return Record("object", key, at, deleted, (content, size, content_type, own.bytes, held, refs, delete_after))

    def sha256(self) -> str:
        """A hash of some content."""
        return f"{self.random.getrandbits(256):064x}"

    def session(
        self,
        user: UUID | None = None,
        id: UUID | None = None,
        *,
        version: int | None = None,
        mark: int | None = None,
        expires_at: int | None = None,
        ends_at: int | None = None,
        deleted: bool = False,
        attributes: str = "{}",
    ) -> Record:
        """A session's record; it expires in a week unless told otherwise."""
        key = session_key(self.id() if user is None else user, self.id() if id is None else id)
        at = self.now_us if version is None else version
        until = self.now_us + WEEK_US if expires_at is None else expires_at
        end = max(until, self.now_us + 2 * WEEK_US) if ends_at is None else ends_at
        proof = self.random.randbytes(16)
        fields = (proof, self.now_us, self.now_us if mark is None else mark, end, until, attributes)
        return Record("session", key, at, deleted, fields)

    def cut(
        self, user: UUID | None = None, *, version: int | None = None, mark: int = 0, deleted: bool = False
    ) -> Record:
        """The record that revokes a user's sessions up to a mark."""
        own = self.id() if user is None else user
        at = self.now_us if version is None else version
        return Record("session_cut", own.bytes, at, deleted, (mark, self.now_us + WEEK_US))

    def of(self, domain: str, kind: str | None = None) -> Record:
        """A record of a domain with new keys; any kind of it unless one is given."""
        chosen = self.random.choice(DOMAINS[domain].kinds).name if kind is None else kind
        make: dict[str, Callable[[], Record]] = {
            "message": self.message,
            "user": self.user,
            "claim": self.claim,
            "conversation": self.conversation,
            "member": self.member,
            "listed": self.listed,
            "session": self.session,
            "session_cut": self.cut,
            "message_doc": self.message_doc,
            "user_doc": self.user_doc,
            "media": self.media,
            "object": self.object,
        }
        return make[chosen]()

    def main(self, domain: str) -> Record:
        """A record with new keys of the kind that a domain is named after."""
        return self.of(domain, DOMAINS[domain].kinds[0].name)

    def with_text(self, domain: str, text: str) -> Record:
        """A record of a domain with this text in it."""
        if domain == "messages":
            return self.message(body=text)
        if domain == "listings":
            return self.listed(role=text)
        if domain == "search":
            return self.message_doc(body=text if text == LONE_SURROGATE else indexed(text))
        if domain == "catalogue":
            return self.media(filename=text)
        if domain == "sessions":
            return self.session(attributes=json.dumps({"text": text}, separators=(",", ":"), ensure_ascii=False))
        return self.user(display_name=text) if domain == "users" else self.conversation(title=text)

    def late(self, domain: str) -> Record:
        """A record that comes after all others, and after every late one, in the order of keys."""
        self._late_us += 1
        if domain == "messages":
            return self.message(self.id(self._late_us), self.id(self._late_us))
        own = self.id(self._late_us)
        if domain == "listings":
            return self.listed(own)
        if domain == "search":
            return self.message_doc(own, self.id(self._late_us))
        if domain == "catalogue":
            return self.media(own)
        if domain == "sessions":
            return self.session(own)
        return self.user(own) if domain == "users" else self.conversation(own)

    def many(self, domain: str, number: int) -> list[Record]:
        """Records with different keys, a tenth of them tombstones; in a few conversations where there are any."""
        conversations = [self.id() for _ in range(max(1, number // 10))]
        made = []
        for at in range(number):
            record = self.of(domain)
            if domain == "messages":
                record = self.message(self.random.choice(conversations))
            elif record.kind == "message_doc":
                record = self.message_doc(self.random.choice(conversations))
            made.append(record if at % 10 else record._replace(deleted=True))
        return made

    def hostile(self, domain: str) -> dict[str, Record]:
        """One record per thing that a codec may get wrong, by its name."""
        make = {
            "users": self._hostile_users,
            "conversations": self._hostile_conversations,
            "listings": self._hostile_listings,
            "search": self._hostile_documents,
            "catalogue": self._hostile_catalogue,
            "sessions": self._hostile_sessions,
            "messages": self._hostile_messages,
        }
        return make[domain]()

    def _hostile_messages(self) -> dict[str, Record]:
        made = {f"body {name}": self.message(body=text) for name, text in TEXTS.items()}
        made |= {f"attributes {name}": self.message(attributes=text) for name, text in JSON_TEXTS.items()}
        made |= {f"kind {name}": self.message(kind=text) for name, text in TEXTS.items() if text}
        made["no thread"] = self.message(thread=None)
        made["a thread"] = self.message(thread=self.id())
        made["the nil thread"] = self.message(thread=UUID(int=0))
        made["one attachment"] = self.message(attachments=[self.id()])
        made["forty attachments"] = self.message(attachments=[self.id() for _ in range(40)])
        made["twice the same attachment"] = self.message(attachments=[UUID(int=1 << 127)] * 2)
        made["edited at microsecond"] = self.message(edited_at=1_700_000_000_123_457)
        made["edited at zero"] = self.message(edited_at=0)
        made["deleted"] = self.message(deleted=True)
        return made

    def _hostile_users(self) -> dict[str, Record]:
        made = {f"display name {name}": self.user(display_name=text) for name, text in TEXTS.items()}
        made |= {f"username {name}": self.user(username=text) for name, text in TEXTS.items()}
        made |= {f"e-mail {name}": self.user(email=text) for name, text in TEXTS.items()}
        made |= {f"attributes {name}": self.user(attributes=text) for name, text in JSON_TEXTS.items()}
        made |= {f"claim {name}": self.claim(f"{text}{self.id().hex}") for name, text in TEXTS.items()}
        made["no e-mail"] = self.user(email=None)
        made["deleted user"] = self.user(deleted=True)
        made["released claim"] = self.claim(deleted=True)
        return made

    def _hostile_conversations(self) -> dict[str, Record]:
        made = {f"title {name}": self.conversation(title=text) for name, text in TEXTS.items()}
        made |= {f"kind {name}": self.conversation(kind=text) for name, text in TEXTS.items()}
        made |= {f"attributes {name}": self.conversation(attributes=text) for name, text in JSON_TEXTS.items()}
        made |= {f"role {role}": self.member(role=role) for role in (*ROLES, "")}
        made["a member who has read"] = self.member(read_up_to=self.id())
        made["a member who has read the nil message"] = self.member(read_up_to=UUID(int=0))
        made["a member on the list"] = self.member(listed=(1 << 53) + 1)
        made["deleted conversation"] = self.conversation(deleted=True)
        made["a member who has left"] = self.member(deleted=True)
        return made

    def _hostile_sessions(self) -> dict[str, Record]:
        made = {f"attributes {name}": self.session(attributes=text) for name, text in JSON_TEXTS.items()}
        made["marked far ahead"] = self.session(mark=(1 << 53) + 1)
        made["marked at zero"] = self.session(mark=0)
        made["expires at the end of time"] = self.session(expires_at=(1 << 62) + 1)
        made["the nil session"] = self.session(id=UUID(int=0))
        made["the last session"] = self.session(id=UUID(int=(1 << 128) - 1))
        made["revoked"] = self.session(deleted=True)
        made["a cut"] = self.cut(mark=(1 << 53) + 1)
        made["a cut taken back"] = self.cut(deleted=True)
        return made

    def _hostile_listings(self) -> dict[str, Record]:
        made = {f"role {name}": self.listed(role=text) for name, text in TEXTS.items()}
        made["read, nothing new"] = self.listed(read_up_to=self.id())
        made["new, nothing read"] = self.listed(newest=self.id())
        made["new and read"] = self.listed(newest=self.id(), read_up_to=UUID(int=0))
        made["active at microsecond"] = self.listed(last_activity=1_700_000_000_123_457)
        made["shown"] = self.listed(shown=(1 << 53) + 1)
        made["ended"] = self.listed(deleted=True)
        return made

    def _hostile_documents(self) -> dict[str, Record]:
        made = {f"body {name}": self.message_doc(body=indexed(text)) for name, text in TEXTS.items()}
        made |= {f"username {name}": self.user_doc(username=sort_name(text)) for name, text in TEXTS.items()}
        made |= {f"names {name}": self.user_doc(names=indexed(text)) for name, text in TEXTS.items()}
        made["no words"] = self.message_doc(body="")
        made["all words there may be"] = self.message_doc(body=" ".join(f"w{at}" for at in range(14_000))[:TEXT_MAX])
        made["a long word"] = self.message_doc(body="\U00020000" * WORD_MAX)
        made["nobody's"] = self.message_doc(sender=UUID(int=0))
        made["deleted message"] = self.message_doc(deleted=True)
        made["deleted user"] = self.user_doc(deleted=True)
        return made

    def _hostile_catalogue(self) -> dict[str, Record]:
        made = {f"file name {name}": self.media(filename=text) for name, text in TEXTS.items()}
        made |= {f"type {name}": self.media(content_type=text) for name, text in TEXTS.items()}
        made |= {f"attributes {name}": self.media(attributes=text) for name, text in JSON_TEXTS.items()}
        made["no file name"] = self.media(filename=None)
        made["nothing but the nil upload"] = self.media(upload=UUID(int=0), sha256="", size=0)
        made["large"] = self.media(size=(1 << 53) + 1)
        made["deleted item"] = self.media(deleted=True)
        made |= {f"object type {name}": self.object(content_type=text) for name, text in TEXTS.items()}
        made["an object held nowhere"] = self.object(held="")
        made["an object held twice"] = self.object(held="files:0 s3:12", refs=(1 << 53) + 1)
        made["an object that is due"] = self.object(refs=0, delete_after=1_700_000_000_123_457)
        made["an object that is gone"] = self.object(deleted=True)
        return made

    def next_versions(self, record: Record, number: int) -> list[Record]:
        """Later versions of a record with different contents, the last one a tombstone."""
        made = []
        for at in range(number):
            version = record.version + 2 * (at + 1)
            made.append(self._same_key(record, version, deleted=at == number - 1))
        return made

    def _same_key(self, record: Record, version: int, *, deleted: bool) -> Record:
        text = f"version {version}"
        if record.kind == "message":
            other = self.message(version=version, body=text, deleted=deleted)
        elif record.kind == "user":
            other = self.user(version=version, display_name=text, deleted=deleted)
            other = other._replace(fields=(*other.fields[:-1], record.fields[-1]))  # a home region is not just a value
        elif record.kind == "conversation":
            other = self.conversation(version=version, title=text, deleted=deleted)
        elif record.kind == "member":
            other = self.member(version=version, role=text, deleted=deleted)
        elif record.kind == "listed":
            other = self.listed(version=version, role=text, deleted=deleted)
        elif record.kind == "session":
            other = self.session(version=version, attributes=f'{{"text":"{text}"}}', deleted=deleted)
        elif record.kind == "session_cut":
            other = self.cut(version=version, mark=version, deleted=deleted)
        elif record.kind == "message_doc":
            other = self.message_doc(version=version, body=text, deleted=deleted)
        elif record.kind == "user_doc":
            other = self.user_doc(version=version, names=text, deleted=deleted)
        elif record.kind == "media":
            other = self.media(version=version, filename=text, deleted=deleted)
        elif record.kind == "object":
            other = self.object(version=version, held=text, deleted=deleted)
        else:
            other = self.claim(version=version, deleted=deleted)
        return other._replace(key=record.key)
