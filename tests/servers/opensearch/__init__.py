"""OpenSearch: jars, a launcher, one node."""

from tests.servers.opensearch.install import OpenSearchInstall, install_opensearch
from tests.servers.opensearch.server import GivenOpenSearch, LocalOpenSearch

__all__ = ["GivenOpenSearch", "LocalOpenSearch", "OpenSearchInstall", "install_opensearch"]
