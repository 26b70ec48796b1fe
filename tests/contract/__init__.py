"""One suite per domain port, run on every store and fake."""
