"""OpenSearch: the search index of large deployments."""
