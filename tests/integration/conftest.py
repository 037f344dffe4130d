"""What integration tests share: servers of others, each started for the first test that wants it."""

from postgres_server import database, postgres

__all__ = ["database", "postgres"]
