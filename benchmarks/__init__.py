"""Overhead, throughput and migration speed beside peers: python -m benchmarks."""
