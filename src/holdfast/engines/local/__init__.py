"""The engine in one process: a SQLite file."""
