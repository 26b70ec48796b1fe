"""Each statement that would stop a busy server is refused, with a way out; each way out is let through."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from datalayer.cli.app import app
from datalayer.migrators.schema_plan import check_cql, load_revisions, plan
from datalayer.schemas.cassandra import cql_file
from datalayer.schemas.history import Phase
from datalayer.schemas.lint import Finding, lint, refused
from datalayer.schemas.render import Revisions
from datalayer.schemas.script import Script, Step

TIMEOUT = "SET LOCAL lock_timeout = '3s'"


def judged(
    *statements: str | Step, phase: Phase = "post", timeout: bool = True, target: str = "", waived: Any = ()
) -> list[Finding]:
    """What is said of a revision of these statements; bare ones are one transaction that sets its lock_timeout."""
    steps = [one if isinstance(one, Step) else Step(one) for one in statements]
    steps = [Step(TIMEOUT), *steps] if timeout and not steps[0].alone else steps
    return lint([Script("0009", phase, "a test", tuple(steps), target, dict(waived))])


def rules(*statements: str | Step, **options: Any) -> set[str]:
    return {finding.rule for finding in judged(*statements, **options)}


def alone(sql: str) -> Step:
    return Step(sql, alone=True)


UNSAFE = [
    ("CREATE INDEX i ON users (email)", "index-blocks-writes"),
    ("create  unique\n index if not exists i on ONLY users (email)", "index-blocks-writes"),
    ('CREATE INDEX "i" ON public.users (email)', "index-blocks-writes"),
    ("CREATE INDEX i /* CONCURRENTLY */ ON users (email)", "index-blocks-writes"),
    ("CREATE INDEX CONCURRENTLY i ON users (email)", "concurrently-in-transaction"),
    ("DROP INDEX i", "index-blocks-writes"),
    ("REINDEX TABLE users", "index-blocks-writes"),
    ("ALTER TABLE users ALTER COLUMN email TYPE varchar(100)", "rewrite"),
    ("ALTER TABLE ONLY users ALTER email SET DATA TYPE varchar(100)", "rewrite"),
    ("ALTER TABLE users ADD COLUMN c int, ALTER COLUMN b TYPE bigint", "rewrite"),
    ("ALTER TABLE users ADD COLUMN r float DEFAULT random()", "rewrite"),
    ("ALTER TABLE users ADD r uuid NOT NULL DEFAULT gen_random_uuid()", "rewrite"),
    ("ALTER TABLE users ADD COLUMN at timestamptz DEFAULT clock_timestamp()", "rewrite"),
    ("ALTER TABLE users ADD COLUMN n bigserial", "rewrite"),
    ("ALTER TABLE users ADD COLUMN n bigint GENERATED ALWAYS AS IDENTITY", "rewrite"),
    ("ALTER TABLE users ADD COLUMN n int GENERATED ALWAYS AS (length(email)) STORED", "rewrite"),
    ("ALTER TABLE users SET TABLESPACE fast", "rewrite"),
    ("ALTER TABLE users SET UNLOGGED", "rewrite"),
    ("VACUUM FULL users", "rewrite"),
    ("CLUSTER users USING users_pkey", "rewrite"),
    ("ALTER TABLE users ADD COLUMN n int NOT NULL", "not-null-without-default"),
    ("ALTER TABLE users ALTER COLUMN email SET NOT NULL", "set-not-null-scans"),
    ("ALTER TABLE users ADD FOREIGN KEY (a) REFERENCES b (id)", "foreign-key-scans"),
    ("ALTER TABLE users ADD CONSTRAINT f FOREIGN KEY (a) REFERENCES b (id)", "foreign-key-scans"),
    ("ALTER TABLE users ADD COLUMN a uuid REFERENCES b (id)", "foreign-key-scans"),
    ("ALTER TABLE users ADD CONSTRAINT c CHECK (length(email) > 3)", "check-scans"),
    ("ALTER TABLE users ADD UNIQUE (email)", "unique-blocks-writes"),
    ("ALTER TABLE users ADD CONSTRAINT u UNIQUE (email)", "unique-blocks-writes"),
    ("ALTER TABLE users ADD PRIMARY KEY (id)", "unique-blocks-writes"),
    ("LOCK TABLE users", "explicit-lock"),
    ("TRUNCATE users", "explicit-lock"),
    ("UPDATE users SET status = 'active'", "bulk-write"),
    ("DELETE FROM users WHERE deleted", "bulk-write"),
    ("INSERT INTO users_2 SELECT * FROM users", "bulk-write"),
    ("DO $$ BEGIN EXECUTE 'DROP TABLE users'; END $$", "unreadable"),
    ("SELECT pg_sleep(100)", "unreadable"),
    ("SET lock_timeout = '1s'; DROP INDEX i", "unreadable"),
    ("ALTER TABLE messages ATTACH PARTITION m_7 DEFAULT", "partition-locks"),
    ("ALTER TABLE messages DETACH PARTITION m_7", "partition-locks"),
    ("ALTER TABLE users DISABLE TRIGGER ALL", "guard-off"),
]
SAFE = [
    "CREATE TABLE IF NOT EXISTS t (id uuid PRIMARY KEY, at timestamptz DEFAULT clock_timestamp())",
    "ALTER TABLE users ADD COLUMN region text",
    "ALTER TABLE users ADD COLUMN region text NOT NULL DEFAULT 'eu, or (us)'",
    "ALTER TABLE users ADD COLUMN at timestamptz DEFAULT now()",
    "ALTER TABLE users ADD COLUMN flags jsonb NOT NULL DEFAULT '{}'",
    "ALTER TABLE users ADD CONSTRAINT c CHECK (length(email) > 3) NOT VALID",
    "ALTER TABLE users ADD CONSTRAINT f FOREIGN KEY (a) REFERENCES b (id) NOT VALID",
    "ALTER TABLE users ADD CONSTRAINT u UNIQUE USING INDEX users_email",
    "ALTER TABLE users ALTER COLUMN status SET DEFAULT 'random()'",
    "CREATE OR REPLACE FUNCTION f() RETURNS int LANGUAGE sql AS $b$ UPDATE users SET email = 'it''s'; SELECT 1 $b$",
    "COMMENT ON TABLE users IS 'LOCK TABLE users; UPDATE users SET x = random()'",
]


@pytest.mark.parametrize(("statement", "rule"), UNSAFE)
def test_an_unsafe_statement_is_refused_by_its_rule(statement: str, rule: str) -> None:
    found = [finding for finding in judged(statement) if finding.rule == rule]
    assert found, f"{rule} does not see {statement}"
    assert found[0].reason
    assert found[0].way_out


@pytest.mark.parametrize("statement", SAFE)
def test_a_safe_statement_is_let_through(statement: str) -> None:
    assert judged(statement, phase="pre") == []


@pytest.mark.parametrize(
    "statement", ["CREATE INDEX CONCURRENTLY IF NOT EXISTS i ON users (email)", "DROP INDEX CONCURRENTLY IF EXISTS i"]
)
def test_an_index_is_built_and_dropped_concurrently_outside_a_transaction(statement: str) -> None:
    assert judged(alone(statement)) == []


def test_what_a_revision_made_itself_may_be_changed_at_will() -> None:
    made = (
        "CREATE TABLE t (id uuid)",
        "CREATE INDEX i ON t (id)",
        "ALTER TABLE t ALTER COLUMN id TYPE text, ADD COLUMN n bigserial",
        "ALTER TABLE t ALTER COLUMN id SET NOT NULL",
    )
    assert judged(*made, phase="pre") == []
    scripts = [
        Script("0008", "post", "makes it", (Step(TIMEOUT), Step(made[0]))),
        Script("0009", "post", "a later one", (Step(TIMEOUT), Step(made[1]))),
    ]
    assert {finding.rule for finding in lint(scripts)} == {"index-blocks-writes"}, "by then it may be large"


def test_set_not_null_trusts_a_check_that_was_validated_before() -> None:
    check = "ALTER TABLE users ADD CONSTRAINT c CHECK (email IS NOT NULL) NOT VALID"
    validate, require = "ALTER TABLE users VALIDATE CONSTRAINT c", "ALTER TABLE users ALTER COLUMN email SET NOT NULL"
    parts = [
        Script(f"000{n}", "post", "", (Step(TIMEOUT), Step(sql)))
        for n, sql in ((3, check), (4, validate), (5, require))
    ]
    assert lint(parts) == []
    assert {finding.rule for finding in lint([parts[0], parts[2]])} == {"set-not-null-scans"}
    other = Script("0005", "post", "", (Step(TIMEOUT), Step(require.replace("email", "username"))))
    assert {finding.rule for finding in lint([*parts[:2], other])} == {"set-not-null-scans"}


def test_validation_in_the_transaction_of_its_constraint_is_refused() -> None:
    check = "ALTER TABLE users ADD CONSTRAINT c CHECK (email IS NOT NULL) NOT VALID"
    validate = "ALTER TABLE users VALIDATE CONSTRAINT c"
    assert rules(check, validate) == {"validate-under-lock"}
    apart = (Step(TIMEOUT), Step("ALTER TABLE users DROP CONSTRAINT IF EXISTS c"), Step(check))
    assert rules(*apart, alone("SELECT 1"), Step(TIMEOUT), Step(validate)) - {"unreadable"} == {"unrepeatable"}


@pytest.mark.parametrize(
    "set_", ["", "SET lock_timeout = 0", "SET LOCAL lock_timeout = '60s'", "SET lock_timeout TO '2min'"]
)
def test_a_lock_without_a_short_wait_is_refused(set_: str) -> None:
    statements = [set_] if set_ else []
    assert rules(*statements, "ALTER TABLE users ADD COLUMN a int", timeout=False) == {"lock-timeout"}


@pytest.mark.parametrize(
    "set_", ["SET LOCAL lock_timeout = '3s'", "SET lock_timeout TO 500", "SET LOCAL lock_timeout='10 s'"]
)
def test_a_lock_with_a_short_wait_is_let_through(set_: str) -> None:
    assert rules(set_, "ALTER TABLE users ADD COLUMN a int", timeout=False) == set()


def test_the_wait_is_set_anew_in_each_transaction() -> None:
    later = (Step(TIMEOUT), Step("DROP TABLE IF EXISTS a"), alone("DROP INDEX CONCURRENTLY IF EXISTS i"))
    assert rules(*later, Step("DROP TABLE IF EXISTS b")) == {"lock-timeout"}


@pytest.mark.parametrize(
    "statement",
    [
        "DROP TABLE users",
        "ALTER TABLE users DROP COLUMN email",
        "ALTER TABLE users DROP email",
        "ALTER TABLE users RENAME COLUMN email TO mail",
        "ALTER TABLE users RENAME TO people",
        "ALTER TABLE users ALTER COLUMN email DROP DEFAULT",
        "ALTER TABLE users ADD COLUMN a int, DROP COLUMN b",
    ],
)
def test_what_takes_away_belongs_into_a_post_revision(statement: str) -> None:
    assert "contract-in-pre" in rules(statement, phase="pre")
    assert "contract-in-pre" not in rules(statement, phase="post")


@pytest.mark.parametrize(
    ("statement", "repeatable"),
    [
        ("ALTER TABLE users_7 ADD COLUMN IF NOT EXISTS a int", True),
        ("ALTER TABLE users_7 ADD COLUMN a int", False),
        ("CREATE TABLE t (id int)", False),
        ("ALTER TABLE users_7 DROP COLUMN IF EXISTS a", True),
        ("DROP TABLE users_7", False),
    ],
)
def test_what_is_run_for_every_place_is_repeatable(statement: str, repeatable: bool) -> None:
    assert ("unrepeatable" in rules(statement, target="users_7")) is not repeatable
    assert "unrepeatable" not in rules(statement)


def test_a_rule_is_waived_with_its_reason_only() -> None:
    found = judged("UPDATE small SET a = 1", waived={"bulk-write": "seven rows"})
    assert [(one.rule, one.waived) for one in found] == [("bulk-write", "seven rows")]
    assert refused(found) == []
    assert refused(judged("UPDATE small SET a = 1", waived={"rewrite": "another rule"}))


# --- on revision files, by the command -----------------------------------------------------------------------------------

UNSAFE_REVISION = '''"""A new index."""
from alembic import op
revision, down_revision, branch_labels, depends_on = "0903_pre", "0007_pre", None, None
def upgrade():
    op.create_index("claims_owner", "claims", ["owner"])
'''
SAFE_REVISION = '''"""A new index."""
from datalayer.schemas.steps import build_index
revision, down_revision, branch_labels, depends_on = "0903_pre", "0007_pre", None, None
def upgrade():
    pass
def upgrade_place(base, table):
    if base == "claims":
        build_index(table, "owner")
'''


@pytest.mark.parametrize(("text", "code"), [(UNSAFE_REVISION, 3), (SAFE_REVISION, 0)])
def test_check_prints_what_would_run_and_refuses_with_3(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, code: int
) -> None:
    (tmp_path / "r0903.py").write_text(text)
    monkeypatch.setattr("datalayer.cli.schema.load_revisions", lambda: Revisions(tmp_path))
    ended = CliRunner().invoke(app, ["schema", "check", "--from", "0007_pre"])
    assert ended.exit_code == code, ended.output
    assert "-- postgresql: 0903_pre" in ended.stdout
    assert "CREATE TABLE" not in ended.stdout.partition("-- cassandra")[0], "what comes before --from is not printed"
    if code:
        assert "0903_pre: index-blocks-writes" in ended.stderr
        assert "instead: CREATE INDEX CONCURRENTLY" in ended.stderr
    else:
        assert "CREATE INDEX CONCURRENTLY IF NOT EXISTS claims_owner ON claims (owner);" in ended.stdout
        assert ended.stderr == ""


def test_check_prints_every_transaction_with_its_lock_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = CliRunner().invoke(app, ["schema", "check"])
    assert ended.exit_code == 0, ended.output
    postgres = ended.stdout.partition("-- sqlite")[0]
    assert len(re.findall(r"BEGIN;\nSET LOCAL lock_timeout", postgres)) == postgres.count("BEGIN;") == 7
    unknown = CliRunner().invoke(app, ["schema", "check", "--from", "0099_pre"])
    assert unknown.exit_code == 2
    assert "one of: 0001, 0002_pre, 0003_pre, 0004_pre, 0005_pre, 0006_pre, 0007_pre" in unknown.stderr


def test_only_the_phase_that_was_asked_for_is_told(tmp_path: Path) -> None:
    (tmp_path / "r0903.py").write_text(SAFE_REVISION)
    pre = plan(Revisions(tmp_path), ["postgresql"], phase="pre", after="0001")
    assert [script.revision for script in pre[0].scripts] == [
        "0002_pre",
        "0003_pre",
        "0004_pre",
        "0005_pre",
        "0006_pre",
        "0007_pre",
        "0903_pre",
    ]
    assert plan(load_revisions(), ["sqlite"], phase="post")[0].scripts == ()


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("0003_place_a.cql", "ALTER TABLE {keyspace}.messages{suffix} ADD IF NOT EXISTS region text;", set()),
        ("0003_place_a.cql", "ALTER TABLE {keyspace}.messages{suffix} ADD region text;", {"unrepeatable"}),
        ("0003_backend_a.cql", "CREATE TABLE {keyspace}.a (b int PRIMARY KEY);", {"unrepeatable"}),
        ("0003_backend_a.cql", "DROP TABLE IF EXISTS {keyspace}.a;", {"contract-in-pre"}),
        ("0003_backend_a_post.cql", "DROP TABLE IF EXISTS {keyspace}.a;", set()),
        ("0003_place_a.cql", "ALTER TABLE {keyspace}.messages{suffix} DROP IF EXISTS a;", {"contract-in-pre"}),
    ],
)
def test_cql_is_judged_too(name: str, text: str, found: set[str]) -> None:
    group: Any = "place" if "place" in name else "backend"
    assert {one.rule for one in check_cql(None, [cql_file(3, name, group, text)]).findings} == found


def test_a_missing_module_of_our_own_is_no_missing_alembic(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: str) -> None:
        raise ModuleNotFoundError("No module named 'datalayer.nothing'", name="datalayer.nothing")

    monkeypatch.setattr("datalayer.migrators.schema_plan.importlib", SimpleNamespace(import_module=broken))
    with pytest.raises(ModuleNotFoundError, match="nothing"):
        load_revisions()
