"""Speed and memory of the data layer beside peers, both sides in one run: ``python -m benchmarks``."""
