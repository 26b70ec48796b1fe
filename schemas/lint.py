"""Statements that would stop a busy Postgres, or the older version of the code, found before anybody runs them.

What it knows is what the manual says about the lock of each statement and about what is rewritten or scanned under it
(postgresql.org/docs/15, ALTER TABLE, CREATE INDEX, explicit-locking); the rules are those of the field (squawk,
strong_migrations, GitLab's and procrastinate's guides). It reads text, statement by statement: what it cannot read
(DO, functions that make DDL) it refuses as well, and a revision that knows better waives the rule with its reason.
What it does not see: how long a wait for old transactions takes, and what a statement means to an application's query.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from datalayer.schemas.script import Dialect, Script, Step

LONGEST_LOCK_WAIT_S: Final = 10.0
_SPACE: Final = re.compile(r"\s+")
_COMMENT: Final = re.compile(r"--[^\n]*|/\*.*?\*/", re.DOTALL)
_BODY: Final = re.compile(r"\$(\w*)\$.*?\$\1\$", re.DOTALL)
_LITERAL: Final = re.compile(r"'(?:[^']|'')*'")
_NAME: Final = r'"?([a-z_][a-z0-9_$.]*)"?'
_CREATE_TABLE: Final = re.compile(rf"create (?:unlogged )?table (?:if not exists )?{_NAME}")
_ALTER_TABLE: Final = re.compile(rf"alter table (?:if exists )?(?:only )?{_NAME} (.+)")
_CREATE_INDEX: Final = re.compile(
    rf"create (?:unique )?index (concurrently )?(?:if not exists )?{_NAME} on (?:only )?{_NAME}"
)
_TIMEOUT: Final = re.compile(r"set (?:local |session )?lock_timeout ?(?:=|to) ?'?(\d+(?:\.\d+)?) ?(ms|s|min)?'?")
_TIMEOUT_UNITS: Final = {"": 0.001, "ms": 0.001, "s": 1.0, "min": 60.0}
_CHECK_NOT_NULL: Final = re.compile(rf"add constraint {_NAME} check \(+{_NAME} is not null\)+")
_LOCKING: Final = re.compile(
    r"(alter (table|index|sequence|view)|drop|create (unique )?index|create .*trigger|truncate|lock|comment on table)\b"
)
_REPEATABLE: Final = re.compile(
    r"(set|select|comment|update|delete|insert .*on conflict|create or replace|create .*if not exists"
    r"|drop .*if exists|alter table .*(add column if not exists|drop column if exists|drop constraint if exists"
    r"|validate constraint|set (default|not null)|drop (default|not null)))\b"
)
_STEADY: Final = frozenset({"now", "current_timestamp", "current_date", "transaction_timestamp", "statement_timestamp"})
"""Functions that a default may call without a rewrite: STABLE ones are evaluated once, when the column is added."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A statement that is refused: by which rule, why, and what to do instead."""

    revision: str
    target: str
    rule: str
    reason: str
    way_out: str
    sql: str
    waived: str = ""
    """The reason that the revision gives for doing it all the same; empty: it is refused."""


@dataclass(slots=True)
class _State:
    """What earlier statements of the same history have done."""

    new: set[str] = field(default_factory=set)
    """Tables made by the same revision: nobody uses them yet."""
    checks: dict[tuple[str, str], str] = field(default_factory=dict)
    """(table, constraint) -> the column that it holds to be NOT NULL."""
    validated: set[tuple[str, str]] = field(default_factory=set)
    """(table, column) that a validated check holds."""
    in_block: set[tuple[str, str]] = field(default_factory=set)
    """Constraints added by the transaction under way."""
    lock_timeout_s: float = 0.0


@dataclass(frozen=True, slots=True)
class _Statement:
    text: str
    """In small letters, without comments, one blank between words, literals kept."""
    script: Script
    step: Step
    state: _State

    @property
    def bare(self) -> str:
        """Without its literals' content."""
        return _LITERAL.sub("''", self.text)


Told = tuple[str, str, str]
"""Rule, reason, way out."""


def lint(scripts: Iterable[Script], dialect: Dialect = "postgresql") -> list[Finding]:
    """What is to be said against the scripts, in the order in which they would run. Waived findings are among them."""
    rules = _SQLITE_RULES if dialect == "sqlite" else _RULES
    state = _State()
    findings: list[Finding] = []
    revision = ""
    for script in scripts:
        if script.revision != revision:
            revision, state.new = script.revision, set()
        for block in script.blocks:
            state.in_block, state.lock_timeout_s = set(), 0.0
            for step in block:
                statement = _Statement(_plain(step.sql), script, step, state)
                for rule in rules:
                    findings += (_finding(statement, told) for told in rule(statement))
                _learn(statement)
    return findings


def refused(findings: Sequence[Finding]) -> list[Finding]:
    """Those that are not waived."""
    return [finding for finding in findings if not finding.waived]


def _finding(statement: _Statement, told: Told) -> Finding:
    rule, reason, way_out = told
    script = statement.script
    return Finding(
        script.revision, script.target, rule, reason, way_out, statement.step.sql, script.waived.get(rule, "")
    )


def _plain(sql: str) -> str:
    # a body between dollars is a literal: what a function does when it is called is not asked here
    parts = _COMMENT.sub(" ", _BODY.sub("''", sql)).split("'")
    # outside of literals only: those at the odd places are their content
    lowered = [part if number % 2 else part.lower() for number, part in enumerate(parts)]
    return _SPACE.sub(" ", "'".join(lowered)).strip()


def _learn(statement: _Statement) -> None:
    state, text = statement.state, statement.text
    if found := _CREATE_TABLE.match(text):
        state.new.add(found[1])
    if found := _TIMEOUT.match(text):
        state.lock_timeout_s = float(found[1]) * _TIMEOUT_UNITS[found[2] or ""]
    table, actions = _altered(statement)
    for action in actions:
        if found := _CHECK_NOT_NULL.search(action):
            state.checks[table, found[1]] = found[2]
            if "not valid" not in action:
                state.validated.add((table, found[2]))
        if found := re.match(rf"add constraint {_NAME}", action):
            state.in_block.add((table, found[1]))
        if (found := re.match(rf"validate constraint {_NAME}", action)) and (table, found[1]) in state.checks:
            state.validated.add((table, state.checks[table, found[1]]))


def _altered(statement: _Statement) -> tuple[str, list[str]]:
    """The table of an ALTER TABLE and its actions; ('', []) for any other statement."""
    found = _ALTER_TABLE.match(statement.text)
    if found is None:
        return "", []
    actions, depth, start = [], 0, 0
    bare = found[2]
    for at, char in enumerate(bare):
        depth += (char == "(") - (char == ")")
        if char == "," and depth == 0:
            actions.append(bare[start:at].strip())
            start = at + 1
    return found[1], [*actions, bare[start:].strip()]


# --- the rules: each yields what it has to say ------------------------------------------------------------------------


def _index(statement: _Statement) -> Iterator[Told]:
    text = statement.text
    if found := _CREATE_INDEX.match(text):
        if not found[1] and found[3] not in statement.state.new:
            yield (
                "index-blocks-writes",
                f"building {found[2]} keeps every write of {found[3]} waiting until it is done",
                "CREATE INDEX CONCURRENTLY, outside of a transaction: datalayer.schemas.steps.build_index",
            )
    elif re.match(r"(drop index|reindex)\b(?!.*\bconcurrently\b)", text):
        yield (
            "index-blocks-writes",
            "it takes the table from everybody, readers too, while it waits and works",
            "CONCURRENTLY, outside of a transaction: datalayer.schemas.steps.drop_index",
        )
    if re.search(r"\bconcurrently\b", statement.bare) and not statement.step.alone:
        yield (
            "concurrently-in-transaction",
            "CONCURRENTLY is refused by the server inside a transaction",
            "with op.get_context().autocommit_block(): ...",
        )


def _rewrite(statement: _Statement) -> Iterator[Told]:
    if re.match(r"(vacuum full|cluster)\b", statement.text):
        yield ("rewrite", "the table is copied while nobody can use it", "VACUUM, or pg_repack by hand")
    table, actions = _altered(statement)
    if not table or table in statement.state.new:
        return
    for action in actions:
        if re.match(r"alter (column )?\S+ (set data )?type\b", action):
            yield (
                "rewrite",
                f"the whole of {table} is written anew while nobody can read or write it",
                "a new column, filled in small batches by a job, read by the next version; a post revision drops the old",
            )
        if re.match(r"add (column )?(?!constraint)", action):
            yield from _added_column(table, action)
        if re.match(r"(attach partition|detach partition(?!.* concurrently))", action):
            yield (
                "partition-locks",
                f"it locks {table} against everybody, and reads what is attached or waits behind every query",
                "attach a table whose validated CHECK already says what the partition holds; DETACH .. CONCURRENTLY",
            )
        if re.match(r"disable (trigger|rule)\b", action):
            yield (
                "guard-off",
                f"writes of {table} would pass by the journal and the fence of a migration",
                "leave the triggers as they are: nothing of a schema change needs them off",
            )
        if re.match(r"set (tablespace|logged|unlogged|access method)", action):
            yield ("rewrite", f"the whole of {table} is copied while nobody can use it", "do it in a new table")


def _added_column(table: str, action: str) -> Iterator[Told]:
    if re.match(r"add (unique|primary|foreign|check|exclude)\b", action):
        return
    if re.search(r"\b(small|big)?serial\b|generated (always|by default) as", action):
        yield (
            "rewrite",
            f"every row of {table} gets its value while nobody can use the table",
            "a plain column without a default, filled in small batches by a job",
        )
    default = re.search(r" default (.+?)( not null| null| check| references|$)", action)
    called = re.findall(r"([a-z_][a-z0-9_.]*) ?\(", _LITERAL.sub("''", default[1])) if default else []
    if any(name not in _STEADY for name in called):
        yield (
            "rewrite",
            f"the default {default[1] if default else ''} is computed for every row of {table} while nobody can use it",
            "a constant default; or add the column without one, SET DEFAULT, and fill old rows in small batches by a job",
        )
    if re.search(r"\bnot null\b", action) and default is None:
        yield (
            "not-null-without-default",
            f"it fails when {table} has a row, and so do the inserts of code that does not know the column",
            "a constant DEFAULT, or a column that may be NULL",
        )


def _constraint(statement: _Statement) -> Iterator[Told]:
    table, actions = _altered(statement)
    if not table or table in statement.state.new:
        return
    state = statement.state
    for action in actions:
        if (found := re.match(r"alter (?:column )?\"?(\w+)\"? set not null", action)) and (
            table,
            found[1],
        ) not in state.validated:
            yield (
                "set-not-null-scans",
                f"every row of {table} is read while nobody can use the table",
                f"ADD CONSTRAINT c CHECK ({found[1]} IS NOT NULL) NOT VALID, then VALIDATE CONSTRAINT c alone, then this",
            )
        if re.match(r"add\b.*\b(references|foreign key)\b", action) and "not valid" not in action:
            yield (
                "foreign-key-scans",
                f"every row of {table} is looked up while writes of both tables wait",
                "ADD CONSTRAINT .. FOREIGN KEY .. NOT VALID, then VALIDATE CONSTRAINT in a transaction of its own",
            )
        if re.match(r"add (constraint \S+ )?check\b", action) and "not valid" not in action:
            yield (
                "check-scans",
                f"every row of {table} is read while nobody can use the table",
                "ADD CONSTRAINT .. CHECK .. NOT VALID, then VALIDATE CONSTRAINT in a transaction of its own",
            )
        if re.match(r"add (constraint \S+ )?(unique|primary key|exclude)\b(?! using index)", action):
            yield (
                "unique-blocks-writes",
                f"its index is built while nobody can use {table}",
                "CREATE UNIQUE INDEX CONCURRENTLY, then ADD CONSTRAINT .. UNIQUE USING INDEX",
            )
        found = re.match(rf"validate constraint {_NAME}", action)
        if found and (table, found[1]) in state.in_block:
            yield (
                "validate-under-lock",
                f"the lock that ADD CONSTRAINT took on {table} is held while every row is read",
                "VALIDATE CONSTRAINT in a transaction of its own: with op.get_context().autocommit_block(): ...",
            )


def _lock(statement: _Statement) -> Iterator[Told]:
    text, state = statement.text, statement.state
    if re.match(r"(lock( table)?|truncate)\b", text):
        yield ("explicit-lock", "nobody can use the table until the transaction ends", "no lock by hand: smaller steps")
    locks = bool(_LOCKING.match(text)) and not re.search(r"\bconcurrently\b", statement.bare)
    if locks and not 0 < state.lock_timeout_s <= LONGEST_LOCK_WAIT_S:
        yield (
            "lock-timeout",
            "while it waits for its lock behind one long query, everybody else waits behind it",
            f"SET LOCAL lock_timeout = '3s' before it, at most {LONGEST_LOCK_WAIT_S:g} s, in the same transaction",
        )
    copies = re.match(r"insert into (?!\"?datalayer_schema).*\bselect\b", statement.bare)
    if copies or re.match(r"(update|delete from) (?!\"?datalayer_schema)", text):
        yield (
            "bulk-write",
            "rows of a growing table are changed in one transaction: their locks are held, and replicas lag, to its end",
            "fill rows by a job, in small batches of their own transactions",
        )


def _unreadable(statement: _Statement) -> Iterator[Told]:
    if re.match(r"(do|call|execute|select)\b", statement.text) or ";" in statement.bare:
        yield (
            "unreadable",
            "what it does cannot be read from its text",
            "plain statements, one by one; or WAIVED = {'unreadable': reason} in the revision",
        )


def _contract_in_pre(statement: _Statement) -> Iterator[Told]:
    if statement.script.phase == "post":
        return
    table, actions = _altered(statement)
    taken = re.match(r"drop (table|view|schema|function|type|sequence)\b", statement.text) is not None
    for action in actions:
        if table in statement.state.new:
            break
        taken = taken or bool(re.match(r"(drop (?!default|not null|constraint)|rename\b)", action))
        taken = taken or bool(re.match(r"alter (column )?\S+ (set not null|drop default)", action))
    if taken:
        yield (
            "contract-in-pre",
            "code of the version before still uses it, or writes what it would refuse",
            "a post revision (NNNN_post): it runs when no process of an older version is left",
        )


def _unrepeatable(statement: _Statement) -> Iterator[Told]:
    script = statement.script
    if (script.target or not script.whole) and not _REPEATABLE.match(statement.bare):
        yield (
            "unrepeatable",
            "it is run again after a crash, or for a table that is made later, and then fails",
            "IF NOT EXISTS, IF EXISTS; for a constraint DROP CONSTRAINT IF EXISTS before it",
        )


_RULES: Final = (_index, _rewrite, _constraint, _lock, _unreadable, _contract_in_pre, _unrepeatable)
_SQLITE_RULES: Final = (_contract_in_pre,)
"""A SQLite file has one writer and DDL that takes it for an instant; ADD COLUMN knows no IF NOT EXISTS there."""
