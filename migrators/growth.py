"""From where the domains lie now to where a size wants them: a plan of ordered steps, which changes nothing.

There is no state of a run: whoever was killed plans again, and what was done is not in the new plan. A domain that
rests at `target` is where it should be, with its way back open; one that stands elsewhere in a migration to the right
backend has a step that goes on with it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from datalayer.domains.movement import OPTIONAL, Movement, movement_of
from datalayer.domains.soft import TTL_MAX_S
from datalayer.errors import DatalayerError, InvalidArgument, SchemaBehind
from datalayer.layer import MOVABLE
from datalayer.migrators.actions import VERDICT
from datalayer.migrators.memories import gone_with_this, no_way_back, unread_from_here
from datalayer.migrators.rates import benchmarked, seen
from datalayer.migrators.sizes import ADVICE, ORDER, SIZES, Size, kind_of
from datalayer.migrators.strategy import strategy_of
from datalayer.routing.route import Phase, Place
from datalayer.routing.shards import parse_group
from datalayer.stores.base import Sized

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from datalayer.control.base import Migration
    from datalayer.migrators.rates import Rate
    from datalayer.migrators.sizes import KindOfBackend
    from datalayer.routing.places import Places
    from datalayer.routing.route import Routing
    from datalayer.settings import BackendSettings, Settings

Verb = Literal["schema", "complete", "rollback", "migrate"]
Standing = Literal["fits", "moves", "lacks", "blocked", "nowhere"]
STEP_S: Final = 3.0
"""What the steps of a migration take besides its rows."""


@dataclass(frozen=True, slots=True)
class GrowthOptions:
    """What an operator chose."""

    use: Mapping[str, str] = field(default_factory=dict)
    """Backend by domain, where several would do."""
    complete: bool = False
    """Close the way back of migrations whose domain has to move again."""
    rate_rows_per_s: float | None = None
    lifetime_s: float = TTL_MAX_S
    """The longest lifetime in use of presence and typing."""


@dataclass(frozen=True, slots=True)
class Step:
    """One command of the plan. ``rows`` and what follows is None where it is not known."""

    verb: Verb
    domain: str
    source: str
    target: str
    command: str
    why: str
    rows: int | None = None
    size_bytes: int | None = None
    seconds: float | None = None
    rate: str = ""
    """What ``seconds`` goes by."""


@dataclass(frozen=True, slots=True)
class DomainPlan:
    """Where one domain is and where the size wants it."""

    domain: str
    backend: str | None
    kind: str | None
    wanted: tuple[str, ...]
    standing: Standing
    detail: str = ""
    target: str | None = None
    toml: str = ""
    """What to add to the configuration, to be filled in."""


@dataclass(frozen=True, slots=True)
class Growth:
    """The plan of a size. It can be run when ``ready``; it is ``done`` when there is nothing to run."""

    size: Size
    domains: tuple[DomainPlan, ...]
    steps: tuple[Step, ...]
    advice: tuple[str, ...]

    @property
    def ready(self) -> bool:
        """Whether nothing is missing or in the way."""
        return not any(plan.standing in {"lacks", "blocked"} for plan in self.domains)

    @property
    def done(self) -> bool:
        """Whether every domain is where the size wants it."""
        return self.ready and not self.steps

    def document(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "size": str(self.size),
            "ready": self.ready,
            "done": self.done,
            "domains": [asdict(plan) for plan in self.domains],
            "steps": [asdict(step) for step in self.steps],
            "seconds": _total(self.steps),
            "advice": list(self.advice),
        }


def _total(steps: Sequence[Step]) -> float | None:
    known = [step.seconds for step in steps if step.seconds is not None]
    return round(sum(known), 1) if known or not steps else None


async def plan_growth(places: Places, settings: Settings, size: Size, options: GrowthOptions | None = None) -> Growth:
    """The steps from here to a size. It asks the stores it would use, and changes nothing.

    Raises InvalidArgument for a choice that names no domain, ConfigurationError for one that names no backend.
    """
    planner = _Planner(places, settings, size, options or GrowthOptions())
    return await planner.plan()


class _Planner:
    def __init__(self, places: Places, settings: Settings, size: Size, options: GrowthOptions) -> None:
        self._places = places
        self._settings = settings
        self._configured = settings.all_backends(MOVABLE)
        self._size = size
        self._options = options
        self._behind: dict[str, str] = {}
        """Backends whose schema must be upgraded first, with what they say."""
        self._routings: Mapping[str, Routing] = {}
        self._live: dict[str, Migration] = {}
        self._history: list[Migration] = []

    async def plan(self) -> Growth:
        self._check_choices()
        _, self._routings = await self._places.control.routings()
        self._places.learn(self._routings)
        self._history = list(await self._places.control.migrations())
        self._live = {m.domain: m for m in reversed(self._history) if not m.finished}
        plans: list[DomainPlan] = []
        steps: list[Step] = []
        for domain in [name for name in ORDER if name in MOVABLE]:
            plan = await self._domain(domain)
            plans.append(plan)
            if plan.standing == "moves":
                steps += await self._steps(domain, plan)
        return Growth(self._size, tuple(plans), (*self._schemas(), *steps), self._advice())

    def _check_choices(self) -> None:
        for domain, name in self._options.use.items():
            if domain not in MOVABLE:
                raise InvalidArgument(f"{domain!r} is no domain", hint=f"one of: {', '.join(MOVABLE)}")
            if name not in self._configured:
                names = ", ".join(sorted(self._configured))
                raise InvalidArgument(f"backend {name!r} is not configured", hint=f"one of: {names}")

    # --- where a domain is, and where it should be ------------------------------------------------------------------

    async def _domain(self, domain: str) -> DomainPlan:
        kinds = SIZES[self._size][domain]
        wanted = tuple(kind.name for kind in kinds)
        routing = self._routings.get(domain)
        if routing is None:
            return self._unplaced(domain, wanted)
        at = routing.authority.backend
        base = DomainPlan(domain, at, self._kind(at), wanted, "fits")
        chosen = self._options.use.get(domain)
        if chosen == at or (chosen is None and self._suits(at, kinds)):
            return _with(base, detail=self._resting(domain, routing))
        found = self._candidates(domain, kinds, at) if chosen is None else [chosen]
        live = self._live.get(domain)
        if chosen is None and live is not None:
            # Where it is going already, or where it came from, comes before what a name would choose.
            going = [live.target.backend, live.source.backend]
            found = sorted(found, key=lambda name: going.index(name) if name in going else len(going))
        if not found:
            return _with(base, "lacks", self._lack(domain, kinds, at), toml=_toml(kinds))
        return await self._towards(_with(base, "moves", target=found[0]), routing, live, found)

    def _unplaced(self, domain: str, wanted: tuple[str, ...]) -> DomainPlan:
        detail = "it has no place: [routes] gives it one, and it begins there"
        if domain not in OPTIONAL:
            first = "it has no place yet: open the application once, or let datalayer grow begin"
            return DomainPlan(domain, None, None, wanted, "blocked", first)
        return DomainPlan(domain, None, None, wanted, "nowhere", detail)

    def _kind(self, name: str) -> str | None:
        backend = self._configured.get(name)
        return None if backend is None else kind_of(backend)

    def _suits(self, name: str, kinds: Sequence[KindOfBackend]) -> bool:
        backend = self._configured.get(name)
        return backend is not None and any(kind.fits(backend) for kind in kinds)

    def _candidates(self, domain: str, kinds: Sequence[KindOfBackend], at: str) -> list[str]:
        """Configured backends of the wanted kinds that take the domain, the best kind first, then by name."""
        found = []
        for kind in kinds:
            for name, backend in sorted(self._configured.items()):
                if name != at and kind.fits(backend) and self._places.backends[name].refuses(domain) is None:
                    found.append(name)
        return found

    def _lack(self, domain: str, kinds: Sequence[KindOfBackend], at: str) -> str:
        keep = f"; --use {domain}={at} leaves it where it is"
        for kind in kinds:
            for name, backend in sorted(self._configured.items()):
                if kind.fits(backend) and (reason := self._places.backends[name].refuses(domain)) is not None:
                    return f"{name!r} cannot take it: {reason}{keep}"
        return f"no configured backend is {' or '.join(kind.name for kind in kinds)}{keep}"

    def _resting(self, domain: str, routing: Routing) -> str:
        live = self._live.get(domain)
        if live is None:
            return ""
        if routing.phase is Phase.TARGET:
            return f"the way back to {live.source.backend!r} is open; datalayer migrations complete {live.id} closes it"
        return f"{live.id} to {live.target.backend!r} is unfinished; datalayer migrations cancel {live.id} forgets it"

    async def _towards(
        self, plan: DomainPlan, routing: Routing, live: Migration | None, found: Sequence[str]
    ) -> DomainPlan:
        """The plan of a domain that must move, unless something is in the way."""
        assert plan.target is not None, "a domain that moves has a target"
        moving = [m.id for name, m in self._live.items() if (g := parse_group(name)) and g.domain == plan.domain]
        if moving:
            way_out = "datalayer shards rebalance finishes them"
            return _with(plan, "blocked", f"{len(moving)} of its slot groups are moving, first {moving[0]}: {way_out}")
        refusal = self._places.backends[plan.target].refuses(plan.domain)
        if refusal is not None:
            return _with(plan, "blocked", f"{plan.target!r} cannot take it: {refusal}")
        if live is not None and plan.target not in {live.target.backend, live.source.backend}:
            return self._from_unfinished(plan, routing, live)
        reason = await self._in_memory(plan, live) or await self._unfit(
            plan.domain, plan.target, begun=live is not None
        )
        if reason is not None:
            return _with(plan, "blocked", f"{plan.target!r} cannot take it now: {reason}")
        others = [name for name in found if name != plan.target]
        return (
            _with(plan, detail=f"{' or '.join(others)} would do, too: --use {plan.domain}={others[0]}")
            if others
            else plan
        )

    async def _in_memory(self, plan: DomainPlan, live: Migration | None) -> str | None:
        assert plan.target is not None, "a domain that moves has a target"
        if live is not None and plan.target == live.source.backend and (reason := no_way_back(self._settings, live)):
            return reason
        gone = gone_with_this(self._settings, plan.domain, plan.target)
        return gone or await unread_from_here(self._places, self._settings, plan.domain)

    def _from_unfinished(self, plan: DomainPlan, routing: Routing, live: Migration) -> DomainPlan:
        if routing.phase is Phase.TARGET and self._options.complete:
            return plan
        if routing.phase is Phase.TARGET:
            detail = f"{live.id} still keeps the way back to {live.source.backend!r} open: --complete closes it first"
        else:
            detail = f"{live.id} is moving it to {live.target.backend!r}: finish it, or datalayer migrations cancel {live.id}"
        return _with(plan, "blocked", detail)

    async def _unfit(self, domain: str, name: str, *, begun: bool) -> str | None:
        """Why a backend cannot take a domain now; one whose schema is behind is noted for an upgrade."""
        if _makes_its_file(self._configured[name]):
            return None
        try:
            await self._places.ensure_open(Place(name))
            if not begun:
                await strategy_of(domain).fit(self._places, domain, Place(name))
        except SchemaBehind as error:
            self._behind[name] = error.message
        except DatalayerError as error:
            return str(error)
        return None

    # --- the steps --------------------------------------------------------------------------------------------------

    def _schemas(self) -> list[Step]:
        return [
            Step(
                "schema", "", "", name, f"datalayer schema upgrade {name}", why, seconds=STEP_S, rate="a few statements"
            )
            for name, why in sorted(self._behind.items())
        ]

    async def _steps(self, domain: str, plan: DomainPlan) -> list[Step]:
        assert plan.target is not None, "a domain that moves has a target"
        routing, live = self._routings[domain], self._live.get(domain)
        source = routing.authority.backend
        if live is not None and live.source.backend == plan.target:
            why = f"{live.id} came from there and has kept it in step"
            command = f"datalayer migrations rollback {live.id} --yes"
            return [
                Step("rollback", domain, source, plan.target, command, why, seconds=STEP_S, rate="nothing is copied")
            ]
        steps = []
        if live is not None and live.target.backend != plan.target:
            command = f"datalayer migrations complete {live.id} --yes"
            why = f"a domain moves once at a time; the way back to {live.source.backend!r} is closed for good"
            steps.append(
                Step("complete", domain, live.source.backend, live.target.backend, command, why, seconds=STEP_S)
            )
        rows, size_bytes = await self._weigh(domain, routing)
        seconds, rate = await self._time(domain, source, plan.target, rows)
        going_on = live is not None and live.target.backend == plan.target
        why = (
            f"{live.id} goes on" if going_on and live is not None else f"{self._size} wants {' or '.join(plan.wanted)}"
        )
        command = f"datalayer migrate {domain} --to {plan.target} --yes"
        steps.append(Step("migrate", domain, source, plan.target, command, why, rows, size_bytes, seconds, rate))
        return steps

    async def _weigh(self, domain: str, routing: Routing) -> tuple[int | None, int | None]:
        """(rows, bytes) by the store's own estimate; None for what it does not tell."""
        if movement_of(domain) is not Movement.RECORDS:
            return None, None
        try:
            await self._places.ensure_open(routing.authority)
            store = self._places.store(domain, routing.authority)
            return await store.estimate(), await store.size() if isinstance(store, Sized) else None
        except DatalayerError:
            return None, None

    async def _time(self, domain: str, source: str, target: str, rows: int | None) -> tuple[float | None, str]:
        if movement_of(domain) is Movement.SOFT:
            return STEP_S + self._options.lifetime_s, "both sides are written for one longest lifetime (--longest-ttl)"
        if rows is None:
            return None, "the number of rows is not known"
        kinds = (self._kind(source) or source, self._kind(target) or target)
        rate = await self._seen_rate(domain, kinds) or benchmarked(*kinds)
        if self._options.rate_rows_per_s is not None:
            rate = rate.capped(self._options.rate_rows_per_s)
        return round(STEP_S + rows / rate.copied_per_s + rows / rate.compared_per_s, 1), rate.source

    async def _seen_rate(self, domain: str, kinds: tuple[str, str]) -> Rate | None:
        """The rate of the newest migration of this domain between such backends here."""
        for migration in self._history:
            sides = (migration.source.backend, migration.target.backend)
            if migration.domain != domain or tuple(self._kind(name) or name for name in sides) != kinds:
                continue
            copied = await self._places.control.document(migration.id, "backfill")
            compared = await self._places.control.document(migration.id, VERDICT)
            found = seen(migration.id, copied, compared)
            if found is not None:
                return found
        return None

    def _advice(self) -> tuple[str, ...]:
        found = list(ADVICE[self._size])
        sqlite = self._settings.control.scheme == "sqlite"
        if sqlite and self._size is not Size.MVP:
            found.append(
                "the control store is a SQLite file: all processes must run on this machine until [control] names a "
                "Postgres database, which only a new deployment can begin with"
            )
        return tuple(found)


def _makes_its_file(backend: BackendSettings) -> bool:
    """Whether opening a backend would make a SQLite file: there is nothing in it to be asked."""
    path = None if backend.url is None or backend.scheme != "sqlite" else backend.url.path
    return path is not None and path.parent.is_dir() and not path.exists()


def _with(
    plan: DomainPlan,
    standing: Standing | None = None,
    detail: str | None = None,
    *,
    target: str | None = None,
    toml: str = "",
) -> DomainPlan:
    return DomainPlan(
        plan.domain,
        plan.backend,
        plan.kind,
        plan.wanted,
        standing or plan.standing,
        plan.detail if detail is None else detail,
        target or plan.target,
        toml,
    )


def _toml(kinds: Sequence[KindOfBackend]) -> str:
    return "\n# or\n".join(kind.toml for kind in kinds)
