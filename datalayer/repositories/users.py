"""Users, with unique usernames and e-mail addresses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast

from datalayer.domains.record import check_text
from datalayer.domains.users import CreateUser, DeleteUser, UpdateUser, claim_key, normalise
from datalayer.errors import InvalidArgument
from datalayer.ids import check_id
from datalayer.repositories.arguments import UNSET, _Unset, as_attributes, as_ids, as_limit, as_uuid, deadline_of
from datalayer.repositories.cursor import decode_cursor, encode_cursor
from datalayer.routing.consistency import PRIMARY, ambient_level, at_level
from datalayer.stores.base import Regional, Scattered
from datalayer.types import REGION_NAME, Count, Page, User

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from uuid import UUID

    from datalayer.clock import Clock, Deadline
    from datalayer.ids import IdSource
    from datalayer.repositories.limits import Limits
    from datalayer.routing.router import Router
    from datalayer.stores.base import UserReads


NAME_BYTES: Final = 256
EMAIL_BYTES: Final = 320
TEXT_BYTES: Final = 1024


class Users:
    """Create, change, delete and look up users.

    Raises besides what is named: Unavailable, DeadlineExceeded (nothing was written), OutcomeUnknown (a write may or
    may not have been applied), InvalidArgument.
    """

    def __init__(self, router: Router, ids: IdSource, clock: Clock, limits: Limits) -> None:
        self._router = router
        self._ids = ids
        self._clock = clock
        self._limits = limits

    async def create(
        self,
        *,
        username: str,
        email: str | None = None,
        display_name: str = "",
        status: str = "active",
        id: UUID | str | None = None,
        attributes: Mapping[str, Any] | None = None,
        region: str | None = None,
        timeout: float | None = None,
    ) -> User:
        """Create a user. With ``id`` (a UUIDv7) a retry is the same write. AlreadyExists names the taken field.

        With ``region`` the row lies on shards of that region, where shards have regions, and an ``id`` given must be one
        of it (InvalidArgument).
        """
        home = None if region is None else check_region(region)
        user_id = self._new_id(home) if id is None else check_id(as_uuid(id, "id"), self._clock.now_us())
        mutation = CreateUser(
            user_id,
            check_unique("username", username, NAME_BYTES),
            None if email is None else check_unique("email", email, EMAIL_BYTES),
            check_text(display_name, "display_name", TEXT_BYTES),
            check_text(status, "status", NAME_BYTES),
            as_attributes(attributes),
            home,
        )
        return cast("User", await self._router.write(mutation, self._deadline(timeout)))

    async def move_region(
        self, id: UUID | str, to: str, *, expected_version: int | None = None, timeout: float | None = None
    ) -> User:
        """Give a user another home region; where shards have regions, the row moves there while it is used.

        Returns when it lies there. After an error or a crash on the way it is served as before, and the next write of
        the user, or a repeated call, goes on. NotFound, Conflict, InvalidArgument (no shard is in that region).
        """
        mutation = UpdateUser(as_uuid(id, "id"), (("region", check_region(to)),), expected_version)
        return cast("User", await self._router.write(mutation, self._deadline(timeout)))

    def _new_id(self, region: str | None) -> UUID:
        """A new id, of the region where ids have one."""
        route = self._router.route
        store = route.authority if isinstance(route.authority, Regional) else route.mirror
        if region is None or not isinstance(store, Regional):
            return self._ids.uuid7()
        store.check_region(region)
        while True:
            made = self._ids.uuid7()
            if store.region_of(made) == region:
                return made

    async def update(
        self,
        id: UUID | str,
        *,
        username: str | _Unset = UNSET,
        email: str | _Unset | None = UNSET,
        display_name: str | _Unset = UNSET,
        status: str | _Unset = UNSET,
        attributes: Mapping[str, Any] | _Unset = UNSET,
        expected_version: int | None = None,
        timeout: float | None = None,
    ) -> User:
        """Change the given fields. NotFound, AlreadyExists (a taken value), Conflict (``expected_version`` differs)."""
        changes: list[tuple[str, str | None]] = []
        if not isinstance(username, _Unset):
            changes.append(("username", check_unique("username", username, NAME_BYTES)))
        if not isinstance(email, _Unset):
            changes.append(("email", None if email is None else check_unique("email", email, EMAIL_BYTES)))
        if not isinstance(display_name, _Unset):
            changes.append(("display_name", check_text(display_name, "display_name", TEXT_BYTES)))
        if not isinstance(status, _Unset):
            changes.append(("status", check_text(status, "status", NAME_BYTES)))
        if not isinstance(attributes, _Unset):
            changes.append(("attributes", as_attributes(attributes)))
        mutation = UpdateUser(as_uuid(id, "id"), tuple(changes), expected_version)
        return cast("User", await self._router.write(mutation, self._deadline(timeout)))

    async def delete(
        self, id: UUID | str, *, expected_version: int | None = None, timeout: float | None = None
    ) -> None:
        """Delete for good and release the unique values; deleting twice is no error. NotFound when it never was."""
        await self._router.write(DeleteUser(as_uuid(id, "id"), expected_version), self._deadline(timeout))

    async def get(self, id: UUID | str, *, include_deleted: bool = False, timeout: float | None = None) -> User | None:
        """One user, or None when absent or deleted."""
        user = await self._get(as_uuid(id, "id"), self._deadline(timeout))
        return None if user is None or (user.deleted and not include_deleted) else user

    async def get_many(self, ids: Iterable[UUID | str], *, timeout: float | None = None) -> dict[UUID, User]:
        """Those of at most 1,000 users that exist and are not deleted, by id."""
        wanted = list(dict.fromkeys(as_ids(ids, "ids")))
        if not wanted:
            return {}

        def call(store: UserReads, deadline: Deadline) -> Any:
            return store.get_many(wanted, deadline)

        routings = tuple(item.bytes for item in wanted)
        found: list[User] = await self._router.read(routings, call, self._deadline(timeout))
        return {user.id: user for user in found if not user.deleted}

    async def get_by_username(self, username: str, *, timeout: float | None = None) -> User | None:
        """The user of a username, compared without case and Unicode form."""
        return await self._by_claim("username", username, self._deadline(timeout))

    async def get_by_email(self, email: str, *, timeout: float | None = None) -> User | None:
        """The user of an e-mail address, compared without case and Unicode form."""
        return await self._by_claim("email", email, self._deadline(timeout))

    async def list(
        self, *, limit: int = 50, cursor: str | None = None, partial: bool = False, timeout: float | None = None
    ) -> Page[User]:
        """A page of all users by id (oldest first), deleted ones left out.

        On shards, one that is down is an error (Unavailable); with ``partial`` its users are left out and the page
        names it in ``missing``.
        """
        size = as_limit(limit)
        after = None if cursor is None else decode_cursor(cursor, "users.list", ())
        missing: set[str] | None = set() if partial else None

        def call(store: UserReads, deadline: Deadline) -> Any:
            if isinstance(store, Scattered):
                return store.page_of(size, deadline, after=after, missing=missing)
            return store.page(size, deadline, after=after)

        items: list[User] = await self._router.read(None, call, self._deadline(timeout))
        cursor = encode_cursor(items[-1].id, "users.list", ()) if len(items) == size else None
        return Page(tuple(items), cursor, tuple(sorted(missing or ())))

    async def count(self, *, partial: bool = False, timeout: float | None = None) -> Count:
        """How many users there are that are not deleted: exact, and as slow as counting them is. ``partial`` as in
        ``list``.
        """
        missing: set[str] | None = set() if partial else None

        def call(store: UserReads, deadline: Deadline) -> Any:
            if isinstance(store, Scattered):
                return store.count_of(deadline, missing=missing)
            return store.count(deadline)

        total: int = await self._router.read(None, call, self._deadline(timeout))
        return Count(total, tuple(sorted(missing or ())))

    async def _get(self, user_id: UUID, deadline: Deadline) -> User | None:
        def call(store: UserReads, deadline: Deadline) -> Any:
            return store.get(user_id, deadline)

        return cast("User | None", await self._router.read((user_id.bytes,), call, deadline))

    async def _by_claim(self, field: str, value: str, deadline: Deadline) -> User | None:
        wanted = normalise(field, check_text(value, field, EMAIL_BYTES))
        key = claim_key(field, value)

        def call(store: UserReads, deadline: Deadline) -> Any:
            return store.claim_owner(key, deadline)

        # Claim and row are two reads: a rename in between is seen by comparing, and looked up once more. Then at the
        # primary: two replicas, one of them behind the other, would go on contradicting each other.
        for level in (ambient_level.get(), PRIMARY):
            with at_level(level):
                owner: UUID | None = await self._router.read((key[:16],), call, deadline)
                user = None if owner is None else await self._get(owner, deadline)
            if user is None:
                continue
            held = user.username if field == "username" else user.email
            if not user.deleted and held is not None and normalise(field, held) == wanted:
                return user
        return None

    def _deadline(self, timeout: float | None) -> Deadline:
        return deadline_of(self._clock, timeout, self._limits)


def check_region(region: object) -> str:
    """The name of a region; InvalidArgument."""
    if not isinstance(region, str) or REGION_NAME.fullmatch(region) is None:
        raise InvalidArgument(f"{region!r} is no name of a region", hint="a-z, then a-z 0-9 -, such as eu-west")
    return region


def check_unique(field: str, value: str, limit_bytes: int) -> str:
    """A username or e-mail address that can be stored and is not empty in its unique form; InvalidArgument."""
    text = check_text(value, field, limit_bytes)
    if not normalise(field, text):
        raise InvalidArgument(f"{field} must not be empty")
    return text
