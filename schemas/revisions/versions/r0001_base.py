"""Messages, users, claims, datalayer_meta, datalayer_token; in SQLite also what the guard's triggers read."""

from pathlib import Path

from alembic import op
from alembic.util import CommandError

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Every statement is IF NOT EXISTS: a database that a store has made is only stamped."""
    ddl = Path(__file__).with_name(f"r0001_{op.get_bind().dialect.name}.sql").read_text()
    for statement in ddl.split(";\n"):
        if statement.strip():
            op.execute(statement)


def downgrade() -> None:
    """The base is never dropped by a tool."""
    raise CommandError("the first revision cannot be taken back: drop the tables by hand")
