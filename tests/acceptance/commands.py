"""The command as tests run it, waiting for what comes of it, and the door for programs beside it."""

import asyncio
import sys
import time

from gridscore.client import connect

GRIDSCORE = [sys.executable, "-m", "gridscore.cli"]


def until(condition, seconds=90):
    """What the condition gives, once it holds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError("nothing came of it")


def with_client(cluster, use):
    """What `use` gives, which is called with a client of the cluster."""

    async def main():
        async with connect(members=cluster.addresses, cluster_name=cluster.cluster_name) as client:
            return await use(client)

    return asyncio.run(main())
