"""The testing room: a cluster in this process, to test jobs and everything around them with, in milliseconds.

`StubCluster` answers the messages of the client protocol as members do: maps, listeners, and journals that overwrite.
The real client, the real worker and your real job file run on it; nothing has to be started or installed.

    from gridscore.testing import StubCluster

    async def test_large_payments_are_declined():
        async with StubCluster() as cluster:
            client = await cluster.client()
            await client.push_model("fraud.ubj", "fraud", alias="champion")
            await client.put_events("lookups.customers", {"c1": {"limit": 100.0}})
            await client.submit("jobs/fraud/job.yaml")
            await client.put_events("events.payments", {"p1": {"customer": "c1", "amount": 5000.0}})
            async with cluster.worker():
                results = await cluster.results("results.payments", 1)
            assert results["p1"]["decision"] == "decline"

`Lab` is all of that in virtual time, by plain calls, and the fixture `gridscore_lab` of the pytest plugin gives one.
`Fault` says what is to go wrong; `StubCluster.cut`, `hang`, `regress`, `kill_member` do it. `virtual_time` has event
loops whose clock jumps, for what takes minutes otherwise. SQL is not there, nor what `gridscore doctor` asks members.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gridscore.testing.cluster import StubCluster
    from gridscore.testing.faults import Fault
    from gridscore.testing.lab import Lab
    from gridscore.testing.virtual_time import VirtualTime

_HOMES = {"Fault": "faults", "Lab": "lab", "StubCluster": "cluster", "VirtualTime": "virtual_time"}

__all__ = ["Fault", "Lab", "StubCluster", "VirtualTime"]


def __getattr__(name: str) -> Any:
    # Imported when asked for: pytest loads the plugin in this package wherever Gridscore is installed.
    if name in _HOMES:
        return getattr(import_module(f"gridscore.testing.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
