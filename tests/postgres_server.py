"""Fixtures: a real PostgreSQL server for the session, and a database of its own for a test."""

from __future__ import annotations

import pytest
from servers import not_here

from gridscore.errors import MemberError
from gridscore.testing.postgres import PostgresServer


def start(folder):
    try:
        return PostgresServer.start(folder)
    except MemberError as error:
        not_here(f"no PostgreSQL: {error}")


@pytest.fixture(scope="session")
def postgres(tmp_path_factory):
    """A server. Who kills it starts it again."""
    with start(tmp_path_factory.mktemp("postgres")) as started:
        yield started


@pytest.fixture
def database(postgres, unique):
    """Address of an empty database."""
    return postgres.create_database(f"test_{unique}")
