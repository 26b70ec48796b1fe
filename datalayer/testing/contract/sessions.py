"""What a store promises of sessions: what was revoked stays so, whatever comes late."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, ClassVar, Final

from datalayer.domains import sessions
from datalayer.domains.record import EXPIRY_GRACE_US
from datalayer.domains.sessions import CreateSession, RevokeSession, RevokeSessions, TouchSession, is_live
from datalayer.errors import DeadlineExceeded, NotFound, StaleRoute
from datalayer.testing.contract.fixture import StoreFixture, outcomes, refused
from datalayer.testing.contract.model import Model
from datalayer.testing.contract.port import by_key, fetched, scanned
from datalayer.testing.contract.values import Maker

if TYPE_CHECKING:
    from uuid import UUID

    from datalayer.types import Session

PLACE: Final = "sessions"
MINUTE_US: Final = 60_000_000
HOUR_US: Final = 60 * MINUTE_US
DAY_US: Final = 24 * HOUR_US
_PURGES_MAX: Final = 500


class SessionReadsSuite:
    """get, of_user, purge."""

    async def test_get_finds_one_session_with_every_value(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place(PLACE), Maker(fixture)
        hostile = {name: one for name, one in maker.hostile(PLACE).items() if one.kind == "session"}
        await store.apply(list(hostile.values()))
        for name, record in hostile.items():
            expected = sessions.to_session(record)
            found, cut = await store.get(expected.user_id, expected.id, fixture.deadline())
            assert found is not None, name
            assert cut is None
            assert (found.deleted, found.version) == (record.deleted, record.version)
            assert repr(found) == repr(expected) or record.deleted, name
            assert (found.proof, found.mark) == (expected.proof, expected.mark) or record.deleted, name

    async def test_get_gives_the_cut_of_the_same_user_alone(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place(PLACE), Maker(fixture)
        cut, own, foreign = maker.cut(mark=maker.now_us), maker.session(), maker.session()
        own = own._replace(key=cut.key + own.key[16:])
        foreign = foreign._replace(key=foreign.key[:16] + own.key[16:])
        await store.apply([cut, own, foreign])
        expected = sessions.to_entity(cut)
        mine, others = sessions.to_session(own), sessions.to_session(foreign)
        assert await store.get(mine.user_id, mine.id, fixture.deadline()) == (mine, expected)
        assert await store.get(others.user_id, others.id, fixture.deadline()) == (others, None)
        assert await store.get(mine.user_id, maker.id(), fixture.deadline()) == (None, expected)
        assert await store.get(maker.id(), mine.id, fixture.deadline()) == (None, None)

    async def test_of_user_gives_all_that_are_not_revoked(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place(PLACE), Maker(fixture)
        user, other = maker.id(), maker.id()
        records = [maker.session(user, deleted=at % 3 == 0) for at in range(25)]
        cut = maker.cut(user, mark=5)
        await store.apply([*records, cut, *(maker.session(other) for _ in range(5))])
        live = {record.key for record in records if not record.deleted}
        for limit in (1, 7, 1000):
            found, told = await store.of_user(user, limit, fixture.deadline())
            keys = [sessions.session_key(one.user_id, one.id) for one in found]
            assert len(set(keys)) == len(keys) == min(limit, len(live)), "filled to the limit"
            assert set(keys) <= live
            assert told == sessions.to_entity(cut)
        assert await store.of_user(maker.id(), 5, fixture.deadline()) == ([], None)

    async def test_purge_takes_out_what_expired_long_ago_and_nothing_else(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.fresh(PLACE), Maker(fixture)
        past = maker.now_us - EXPIRY_GRACE_US - MINUTE_US
        gone = [maker.session(expires_at=past, deleted=at % 4 == 0) for at in range(20)]
        kept = [maker.session(deleted=at % 4 == 0) for at in range(20)]
        kept += [maker.session(expires_at=maker.now_us - MINUTE_US), maker.cut()]
        await store.apply([*gone, *kept])
        before_us = fixture.clock.now_us() - EXPIRY_GRACE_US
        for _ in range(_PURGES_MAX):
            looked, taken = await store.purge(before_us, 7)
            assert taken <= looked <= 7, "a purge is bounded"
            if await store.estimate() == len(kept):
                break
        assert by_key(await scanned(store, await store.plan_scan(3), 5)) == by_key(kept)
        assert await fetched(store, [one.ident for one in gone]) == {}

    async def test_reads_past_their_deadline_say_so(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place(PLACE), Maker(fixture)
        await refused(DeadlineExceeded, store.get(maker.id(), maker.id(), fixture.deadline(-1.0)))
        await refused(DeadlineExceeded, store.of_user(maker.id(), 5, fixture.deadline(-1.0)))


class SessionExecuteSuite:
    """CreateSession, TouchSession, RevokeSession, RevokeSessions."""

    exact: ClassVar[bool] = True
    """Whether versions are decide()'s own."""

    async def test_random_mutations_do_what_decide_does(self, fixture: StoreFixture) -> None:
        store, maker, model = await fixture.fresh(PLACE), Maker(fixture), Model(PLACE, self.exact)
        known = [(maker.id(), maker.id(), maker.random.randbytes(16)) for _ in range(6)]
        for _ in range(120 * fixture.scale):
            await model.step(fixture, store, _mutation(maker, *fixture.random.choice(known)))
        expected = by_key(model.records.values())
        assert await fetched(store, expected) == expected

    async def test_a_revoked_session_never_comes_back(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place(PLACE), Maker(fixture)
        made = await store.execute(_create(maker), fixture.deadline())
        versions = [made.records[0]]
        for at in range(3):
            touch = TouchSession(made.entity.user_id, made.entity.id, made.entity.proof, HOUR_US * (at + 2))
            versions += (await store.execute(touch, fixture.deadline())).records
        revoke = RevokeSession(made.entity.user_id, made.entity.id, made.entity.proof)
        gone = await store.execute(revoke, fixture.deadline())
        assert gone.entity.deleted
        # one that was under way while it was revoked, by a clock that runs a minute ahead
        versions.append(versions[-1]._replace(version=fixture.clock.now_us() + MINUTE_US))
        fixture.random.shuffle(versions)
        for late in versions:
            await store.apply([late])
        found, _ = await store.get(made.entity.user_id, made.entity.id, fixture.deadline())
        assert found is not None
        assert found.deleted
        assert (await store.execute(revoke, fixture.deadline())).records == ()
        (tomb,) = gone.records
        assert tomb.fields[4] == made.entity.ends_at_us, "a tombstone stays until no version could be accepted"

    async def test_a_cut_ends_every_session_before_it_and_none_after(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place(PLACE), Maker(fixture)
        user = maker.id()
        for _ in range(3):
            before = [(await store.execute(_create(maker, user), fixture.deadline())).entity for _ in range(3)]
            ahead = maker.session(user, mark=fixture.clock.now_us() + MINUTE_US - 1_000_000)
            await store.apply([ahead])
            await store.execute(RevokeSessions(user), fixture.deadline())
            after = (await store.execute(_create(maker, user), fixture.deadline())).entity
            for session in (*before, sessions.to_session(ahead)):
                assert not await _live(store, session, fixture), "by a clock that is up to a minute ahead"
                touch = TouchSession(user, session.id, session.proof, HOUR_US)
                await refused(NotFound, store.execute(touch, fixture.deadline()))
            assert await _live(store, after, fixture)
            assert await _live(store, (await store.execute(_touch(after), fixture.deadline())).entity, fixture)

    async def test_racing_creates_and_cuts_leave_what_came_after(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place(PLACE), Maker(fixture)
        peer = await fixture.peer(store)
        for _ in range(4):
            user = maker.id()
            first = [(await store.execute(_create(maker, user), fixture.deadline())).entity for _ in range(3)]
            racing = [(store, peer)[at % 2].execute(_create(maker, user), fixture.deadline()) for at in range(4)]
            cuts = [client.execute(RevokeSessions(user), fixture.deadline()) for client in (store, peer)]
            _, errors = await outcomes([*racing, *cuts])
            assert not errors
            last = [(await one.execute(_create(maker, user), fixture.deadline())).entity for one in (store, peer)]
            assert [await _live(peer, one, fixture) for one in first] == [False] * 3
            assert [await _live(store, one, fixture) for one in last] == [True] * 2

    async def test_racing_touches_do_not_undo_a_revoke(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place(PLACE), Maker(fixture)
        clients = [store, await fixture.peer(store)]
        for _ in range(6):
            made = (await store.execute(_create(maker), fixture.deadline())).entity
            revoked = asyncio.Event()

            async def touch(client: Any, at: int, made: Session = made, revoked: asyncio.Event = revoked) -> None:
                longer = TouchSession(made.user_id, made.id, made.proof, HOUR_US * (at + 2))
                began_after = revoked.is_set()
                done, errors = await outcomes([client.execute(longer, fixture.deadline())])
                assert not (began_after and done), "a touch after the revoke was accepted"
                assert {type(error) for error in errors} <= {NotFound}

            async def revoke(made: Session = made, revoked: asyncio.Event = revoked) -> None:
                await clients[1].execute(RevokeSession(made.user_id, made.id), fixture.deadline())
                revoked.set()

            calls = [touch(clients[at % 2], at) for at in range(4)]
            await asyncio.gather(*calls[:2], revoke(), *calls[2:])
            assert not await _live(store, made, fixture)

    async def test_a_touch_lengthens_and_never_beyond_the_end(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place(PLACE), Maker(fixture)
        create = CreateSession(maker.id(), maker.id(), maker.random.randbytes(16), 2 * HOUR_US, 5 * HOUR_US)
        made = (await store.execute(create, fixture.deadline())).entity
        shorter = TouchSession(made.user_id, made.id, made.proof, HOUR_US)
        unchanged = await store.execute(shorter, fixture.deadline())
        assert (unchanged.records, unchanged.entity.expires_at_us) == ((), made.expires_at_us)
        longest = TouchSession(made.user_id, made.id, made.proof, 50 * HOUR_US)
        assert (await store.execute(longest, fixture.deadline())).entity.expires_at_us == made.ends_at_us
        for wrong in (
            TouchSession(made.user_id, made.id, bytes(16), HOUR_US),
            TouchSession(made.user_id, maker.id(), made.proof, HOUR_US),
            TouchSession(maker.id(), made.id, made.proof, HOUR_US),
        ):
            await refused(NotFound, store.execute(wrong, fixture.deadline()))
        stranger = await store.execute(RevokeSession(made.user_id, made.id, bytes(16)), fixture.deadline())
        assert stranger.records == ()
        assert await _live(store, made, fixture)

    async def test_an_expired_session_is_not_touched(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place(PLACE), Maker(fixture)
        record = maker.session(expires_at=maker.now_us - 1)
        await store.apply([record])
        await refused(NotFound, store.execute(_touch(sessions.to_session(record)), fixture.deadline()))

    async def test_a_create_repeated_is_the_same_session(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place(PLACE), Maker(fixture)
        create = _create(maker)
        made = await store.execute(create, fixture.deadline())
        again = await store.execute(create, fixture.deadline())
        assert (again.records, again.entity) == ((), made.entity)

    async def test_a_revoke_of_nothing_changes_nothing(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.fresh(PLACE), Maker(fixture)
        done = await store.execute(RevokeSession(maker.id(), maker.id()), fixture.deadline())
        assert (done.entity, done.records) == (None, ())
        assert await store.empty()

    async def test_write_past_its_deadline_changes_nothing(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.place(PLACE), Maker(fixture)
        create = _create(maker)
        await refused(DeadlineExceeded, store.execute(create, fixture.deadline(-1.0)))
        assert await store.get(create.user_id, create.id, fixture.deadline()) == (None, None)

    async def test_write_to_a_dropped_place_says_that_the_route_is_stale(self, fixture: StoreFixture) -> None:
        store, maker = await fixture.fresh(PLACE), Maker(fixture)
        await store.execute(_create(maker), fixture.deadline())
        await store.drop()
        await refused(StaleRoute, store.execute(_create(maker), fixture.deadline()))


def _create(maker: Maker, user: UUID | None = None) -> CreateSession:
    own = maker.id() if user is None else user
    return CreateSession(own, maker.id(), maker.random.randbytes(16), HOUR_US, 30 * DAY_US, '{"device":"web"}')


def _touch(session: Session) -> TouchSession:
    return TouchSession(session.user_id, session.id, session.proof, 5 * HOUR_US)


async def _live(store: Any, session: Session, fixture: StoreFixture) -> bool:
    found, cut = await store.get(session.user_id, session.id, fixture.deadline())
    return found is not None and is_live(found, cut, fixture.clock.now_us())


def _mutation(maker: Maker, user: UUID, id: UUID, proof: bytes) -> sessions.SessionMutation:
    random = maker.random
    given = proof if random.random() < 0.9 else bytes(16)
    ttl_us = random.randrange(HOUR_US, 40 * DAY_US)
    choice = random.random()
    if choice < 0.5:
        return TouchSession(user, id, given, ttl_us)
    if choice < 0.6:
        return RevokeSession(user, id, random.choice((None, given)))
    if choice < 0.7:
        return RevokeSessions(user)
    fresh = id if random.random() < 0.5 else maker.id()
    return CreateSession(user, fresh, proof, ttl_us, 50 * DAY_US, random.choice(("{}", '{"a":1}')))
