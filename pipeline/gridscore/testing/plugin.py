"""The pytest plugin: fixtures for tests of users' own jobs. pytest finds it where Gridscore is installed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gridscore.client import BlockingClient
    from gridscore.testing.lab import Lab


@pytest.fixture
def gridscore_lab() -> Iterator[Lab]:
    """A lab: jobs on a stub cluster in virtual time; see `gridscore.testing.Lab`."""
    from gridscore.testing.lab import Lab

    with Lab() as lab:
        yield lab


@pytest.fixture(scope="session")
def gridscore_cluster() -> Iterator[BlockingClient]:
    """The Python door to a real member, which starts once in seconds and ends with the tests.

    Maps outlive a test. Where no member can start, as without a network for its first download, the test is skipped.
    """
    from gridscore import connect
    from gridscore.errors import MemberError
    from gridscore.grid.member import Cluster

    try:
        started = Cluster.start(1, port=0, register=False)
    except MemberError as error:
        pytest.skip(f"no member: {error}")
    with started, connect(members=started.addresses, cluster_name=started.cluster_name) as client:
        yield client
