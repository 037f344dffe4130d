"""All that is served, called a few times by schemathesis; `python -m tests.served_calls` does it many times."""

from served_calls import call_all, served

from gridscore.serve import verbs
from gridscore.testing import StubCluster


async def test_no_call_meets_a_fault_of_ours():
    async with StubCluster(partitions=8) as cluster:
        client = await cluster.client()
        async with served(client, await cluster.connect("server")) as server:
            done = await call_all(client, server, "--phases", "examples,fuzzing", "--max-examples", "6", "--seed", "1")
    assert not done.problems
    assert done.calls > 250


async def test_a_fault_of_ours_is_found(monkeypatch):
    async def fails(_grid):
        raise KeyError("planted")

    monkeypatch.setattr(verbs, "living_workers", fails)
    async with StubCluster(partitions=8) as cluster:
        client = await cluster.client()
        async with served(client, await cluster.connect("server")) as server:
            options = "--phases", "fuzzing", "--max-examples", "1", "--include-operation-id", "get_workers"
            done = await call_all(client, server, *options)
    assert "Server error" in done.problems
    assert "planted" in done.problems
