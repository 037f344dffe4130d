"""What a test does when a server or a tool that it needs is not here."""

import os
from contextlib import contextmanager
from typing import NoReturn

import pytest

from gridscore.errors import MemberError
from gridscore.grid.member import Cluster

IN_CI = os.environ.get("CI", "").lower() in ("true", "1")


def not_here(why) -> NoReturn:
    """On a laptop the rest is still worth running, so skip; in CI, whatever is missing is a failure."""
    if IN_CI:
        pytest.fail(why)
    pytest.skip(why, allow_module_level=True)


@contextmanager
def member(**how):
    """A cluster of one member, on a port of its own."""
    try:
        started = Cluster.start(1, port=0, **how)
    except MemberError as error:
        not_here(f"no member: {error}")
    with started:
        yield started
