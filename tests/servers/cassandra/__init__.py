"""Cassandra nodes: jars, a probe of the CQL port, one node or a cluster."""

from tests.servers.cassandra.cluster import LocalCassandraCluster
from tests.servers.cassandra.install import CassandraInstall, install_cassandra
from tests.servers.cassandra.server import HEAP, LocalCassandra, NodePlan

__all__ = ["HEAP", "CassandraInstall", "LocalCassandra", "LocalCassandraCluster", "NodePlan", "install_cassandra"]
