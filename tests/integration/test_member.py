"""The embedded member: start, stop, errors, and what becomes of members whose parent dies."""

from __future__ import annotations

import hazelcast


def connected(cluster, address=0):
    return hazelcast.HazelcastClient(
        cluster_name=cluster.cluster_name, cluster_members=[cluster.addresses[address]], cluster_connect_timeout=10
    )


def test_a_client_can_use_the_member(cluster, unique):
    client = connected(cluster)
    try:
        numbers = client.get_map(f"numbers-{unique}").blocking()
        numbers.put("one", 1)
        assert numbers.get("one") == 1
        assert len(client.cluster_service.get_members()) == 1
    finally:
        client.shutdown()
