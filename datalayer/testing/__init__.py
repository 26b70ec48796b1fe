"""Contract suites, fakes, workload, ledger, oracles and failpoints, shipped to users."""
