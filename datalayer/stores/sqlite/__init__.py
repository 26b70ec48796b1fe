"""SQLite: the embedded default. sqlite3 is imported here only."""
