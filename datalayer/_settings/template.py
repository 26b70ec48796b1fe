"""The configuration that `datalayer init` writes. Lines that begin with '#' and no space are examples to uncomment."""

TEMPLATE = """\
# Configuration of the data layer. `datalayer config check` reads it back, `datalayer config show` prints what is in
# force. Any key may come from the environment instead: DATALAYER_BACKENDS__MAIN__URL, or, for a secret in a file,
# DATALAYER_BACKENDS__MAIN__PASSWORD_FILE=/run/secrets/main.

# A backend is one configured store: [backends.NAME] with a url.
[backends.main]
# Three slashes: relative to this file; four: absolute. For Postgres: "postgresql://app@db.example/app"
url = "sqlite:///datalayer-data/main.sqlite"
# Connections of one process, a total.
#pool_max = 20

# Where messages may move one day: datalayer migrate messages --to cassandra
#[backends.cassandra]
#url = "cassandra://c1.example,c2.example/chat?local_dc=dc1&replication=3"

# A sharded backend has members in the place of a url.
#[backends.shards]
#members = { s0 = "postgresql://app@h0.example/app", s1 = "postgresql://app@h1.example/app" }

#[backends.postgres]
#url = "postgresql://app@db.example/app"
# A file that holds the password, so that it stands neither here nor in the url.
#password_file = "/run/secrets/postgres"
# Streaming replicas: reads that they show enough for go there.
#replicas = ["postgresql://app@r1.example/app"]

#[backends.redis]
#url = "redis://redis.example/0"

# The backend that first serves a domain; domains without a line are served by main. Later a migration moves them,
# and the control store, not this file, knows where they are.
[routes]
users = "main"
messages = "main"

# The control store: routing, processes, migrations, audit log. Default: beside main's SQLite file (control.sqlite),
# or main's database.
#[control]
#url = "postgresql://app@db.example/app"

#[limits]
#body_max_bytes = 1048576
# Members of one conversation.
#members_max = 10000

# Seconds a call may take: without a timeout of its own, and at most.
#[deadlines]
#default_s = 5.0
#max_s = 30.0
"""
