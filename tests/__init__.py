"""Tests by kind: unit, contract, simulation, integration (real servers), acceptance (CLI)."""
