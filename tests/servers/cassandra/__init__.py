"""Cassandra nodes: jars, a probe of the CQL port, one node or a cluster."""

from tests.servers.cassandra.cluster import LocalCassandraCluster
from tests.servers.cassandra.install import CassandraInstall, install_cassandra
from tests.servers.cassandra.server import LocalCassandra, NodePlan

__all__ = ["CassandraInstall", "LocalCassandra", "LocalCassandraCluster", "NodePlan", "install_cassandra"]
