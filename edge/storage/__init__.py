"""Where users, bindings and secrets live: in memory or in an SQL database (SQLite, PostgreSQL, MySQL)."""

from edge.storage.opening import open_storage

__all__ = ["open_storage"]
