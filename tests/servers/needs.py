"""What this machine lacks to install the servers of `make test`, told before the run rather than in the midst of it."""

import os
import shutil

from tests.servers import packages
from tests.servers.given import (
    CASSANDRA_VARIABLE,
    DYNAMODB_VARIABLE,
    OPENSEARCH_VARIABLE,
    REDIS_CLUSTER_VARIABLE,
    REDIS_VARIABLE,
    S3_VARIABLE,
)
from tests.servers.golang import find_go
from tests.servers.java import find_java
from tests.servers.redis.install import BINARY_VARIABLE as REDIS_BINARY
from tests.servers.s3.server import BINARY_VARIABLE as S3_BINARY

_ON_JAVA = {
    CASSANDRA_VARIABLE: "Cassandra",
    OPENSEARCH_VARIABLE: "OpenSearch",
    DYNAMODB_VARIABLE: "DynamoDB Local",
}


def missing() -> list[str]:
    """A sentence for each tool that is neither here nor to be had by apt; none for servers given by URL."""
    found = [] if packages.can_apt() else _java() + _redis()
    # apt has a Go, but many a Debian one that is too old.
    if not {S3_VARIABLE, S3_BINARY} & set(os.environ) and find_go() is None:
        found.append(
            "Go 1.21 or newer is missing (it builds the S3 server): install it, name a versitygw binary by "
            f"{S3_BINARY} or set {S3_VARIABLE}"
        )
    return found


def _java() -> list[str]:
    started = {variable: product for variable, product in _ON_JAVA.items() if variable not in os.environ}
    if not started:
        return []
    who, instead, found = ", ".join(started.values()), ", ".join(started), []
    compiler = set(started) != {CASSANDRA_VARIABLE}
    if find_java(compiler=compiler) is None:
        package = f"openjdk-17-{'jdk' if compiler else 'jre'}-headless"
        found.append(
            f"Java 17{' with javac' if compiler else ''} is missing (for {who}): install it (Debian: apt install "
            f"{package}), name one by DATALAYER_SERVERS_JAVA_HOME or set {instead}"
        )
    if shutil.which("mvn") is None:
        found.append(f"Maven is missing (it fetches {who}): install it (Debian: apt install maven) or set {instead}")
    return found


def _redis() -> list[str]:
    given = {REDIS_VARIABLE, REDIS_CLUSTER_VARIABLE} <= set(os.environ) or REDIS_BINARY in os.environ
    if given or shutil.which("redis-server"):
        return []
    by_hand = f"install it (Debian: apt install redis-server), name a binary by {REDIS_BINARY}"
    return [f"Redis is missing: {by_hand} or set {REDIS_VARIABLE} and {REDIS_CLUSTER_VARIABLE}"]
