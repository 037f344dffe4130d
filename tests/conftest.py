"""What all tests share: one real member for the session, and settings that lead to it."""

from __future__ import annotations

import os
import signal
import tempfile
import uuid

import hypothesis
import pytest
from servers import member, not_here

from gridscore.errors import MemberError
from gridscore.grid.settings import GridSettings

# Members and brokers of tests live for seconds: what the second compiler of their JVMs costs comes back much later.
os.environ.setdefault("JDK_JAVA_OPTIONS", "-XX:TieredStopAtLevel=1")
# Threads of XGBoost that wait for each other would spin: where others want the processors too, for most of the time.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Whether an example is slow says how busy the machine is.
hypothesis.settings.register_profile("anywhere", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("anywhere")

# A shell starts `make test &` with SIGINT ignored, and `nohup` ignores SIGHUP. Children inherit that and would never
# end by Ctrl-C; a handler, which does nothing either, is not inherited.
for _number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, lambda *_: None)


# They take minutes: begun late, the last of them would run alone.
LONG = ["containers", "on_call", "pages", "group_machine", "demo", "chaos", "pipeline", "readme"]


def pytest_collection_modifyitems(items):
    rank = {f"test_{name}": number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


@pytest.fixture(autouse=True)
def _own_settings(monkeypatch, tmp_path_factory):
    """No test sees the connection, the registered cluster or the settings file of whoever runs it, or litters /tmp."""
    for name in [name for name in os.environ if name.startswith("GRIDSCORE_") and name != "GRIDSCORE_HAZELCAST"]:
        monkeypatch.delenv(name)
    base = tmp_path_factory.getbasetemp()
    monkeypatch.setenv("GRIDSCORE_HOME", str(base / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(base / "config"))
    # Logs of members that were made to fail are kept for a reader.
    monkeypatch.setattr(tempfile, "tempdir", str(base))
    monkeypatch.setenv("TMPDIR", str(base))


@pytest.fixture(scope="session")
def cluster():
    """A cluster of one member. Maps outlive a test: take names from `unique`."""
    with member(heap="2g", register=False) as started:
        yield started


@pytest.fixture
def grid_settings(cluster):
    """Settings that lead to the cluster."""
    return GridSettings.load(members=cluster.addresses, cluster_name=cluster.cluster_name)


@pytest.fixture
def unique():
    """A piece of a name that no other test has: `events.flights-{unique}`."""
    return f"u{uuid.uuid4().hex[:7]}"  # or YAML may read a number


@pytest.fixture(scope="session")
def kafka(tmp_path_factory):
    """A Kafka broker (see `kafka_server`). Topics outlive a test: take names from `unique`."""
    kafka_server = pytest.importorskip("kafka_server", exc_type=ImportError)
    try:
        started = kafka_server.start(tmp_path_factory.mktemp("kafka"))
    except MemberError as error:
        not_here(f"no broker: {error}")
    with started.broker:
        yield started
