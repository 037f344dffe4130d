"""A cluster whose journals of events are soon full."""

import pytest
import yaml

from gridscore.grid.member import Cluster
from gridscore.grid.template import template_file

RING = 16
PARTITIONS = 271


@pytest.fixture(scope="module")
def small_ring(tmp_path_factory):
    """A cluster whose journals hold sixteen events a partition."""
    config = yaml.safe_load(template_file().read_text())
    config["hazelcast"]["map"]["events.*"]["event-journal"]["capacity"] = PARTITIONS * RING
    path = tmp_path_factory.mktemp("ring") / "hazelcast.yaml"
    path.write_text(yaml.safe_dump(config))
    with Cluster.start(1, port=0, heap="256m", config=path) as cluster:
        yield cluster
