"""The parts of datalayer.settings: URLs, sources with their places, faults."""
