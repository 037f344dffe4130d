"""The only member dies and another one starts in its place: who was connected notices, and `status` says so."""

import asyncio

import pytest
import scoring

from gridscore.client import connect
from gridscore.errors import ClusterReplacedError
from gridscore.grid import GridSettings
from gridscore.grid import connect as connect_grid
from gridscore.grid.member import Cluster
from gridscore.job.plugs.base import SinkSettings
from gridscore.operations.flow import FlowObserver, History
from gridscore.sinks.runner import SinkRunner
from gridscore.sources.runner import SourceRunner
from gridscore.testing.sinks import ListSink, Received
from gridscore.testing.sources import Script


async def findings(client):
    history = History()
    history.add(await FlowObserver(client.grid).look())
    return {name: {finding.code: finding for finding in found} for name, found in history.findings()}


async def test_a_cluster_that_was_replaced_is_noticed_and_told(unique, caplog):
    name = f"job-{unique}"
    with Cluster.start(1, port=0, heap="512m", register=False) as own:
        settings = GridSettings.load(members=own.addresses, cluster_name=own.cluster_name)
        async with await connect_grid(settings) as for_source, await connect_grid(settings) as for_sink:
            # Given a source, a worker and a sink
            script = Script([("k", b'{"amount":1}'), Script.PAUSE])
            source = SourceRunner(for_source, f"source-{unique}", script.source, kind="script", to=f"events.{name}")
            received = Received()
            sink = SinkRunner(
                for_sink,
                f"sink-{unique}",
                "list",
                SinkSettings(results=f"results.{name}"),
                lambda: ListSink(received, "one"),
            )
            async with scoring.scoring(own, name) as (client, worker):
                running = [asyncio.create_task(source.run()), asyncio.create_task(sink.run())]
                await client.put_events(f"events.{name}", scoring.events(10))
                await scoring.all_results(client, name, 10)
                await scoring.until(lambda: len(received.newest()) >= 10)
                # When an empty cluster takes the place of theirs
                own.kill(0)
                await asyncio.to_thread(own.restart, 0)
                # Then the source and the sink end, and say why
                for task in running:
                    with pytest.raises(ClusterReplacedError, match="was replaced by another one"):
                        async with asyncio.timeout(60):
                            await task
                # and the worker lets its job go, and goes on
                await scoring.until(lambda: not worker.runners)
                assert "Connected to the cluster again" in caplog.text

                # and who looks at the new cluster is told of each
                async def told():
                    found = await findings(client)
                    assert all(found.values())
                    return (
                        "cluster_replaced" in found.get(name, {})
                        and "failed" in found.get(source.name, {})
                        and "failed" in found.get(sink.name, {})
                    )

                await scoring.until(told)
                found = await findings(client)
                assert "was replaced by another one" in found[source.name]["failed"].text
                assert "was replaced by another one" in found[sink.name]["failed"].text
        # and that is over when the job is there again
        async with connect(members=own.addresses, cluster_name=own.cluster_name) as again:
            assert (await findings(again)).keys() == {source.name, sink.name}
