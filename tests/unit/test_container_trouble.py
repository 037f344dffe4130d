"""What an engine that is missing, forbidden or too small says to a user, and a member that does not come up."""

import datetime as dt
import gc
import socket
from types import SimpleNamespace

import docker
import pytest
import requests
import urllib3
from docker.errors import APIError, DockerException, ImageNotFound

from gridscore.containers import Containers
from gridscore.errors import ContainerError, MemberError, UsageError
from gridscore.grid.settings import GridSettings


class FakeEngine:
    """As much of Docker's client as is needed: images that are there, memory, and containers that log and end."""

    def __init__(self, *, memory=1 << 36, images=True, log="", state=None):
        self.containers = self.images = self
        self.made = []
        self.memory, self.has_images, self.log, self.state = memory, images, log, state or {"OOMKilled": False}

    def info(self):
        return {"MemTotal": self.memory}

    def get(self, name):
        if not self.has_images:
            raise ImageNotFound(f"no such image: {name}")

    def pull(self, name):
        raise APIError(f"pinging container registry for {name}: no such host")

    def list(self, **_):
        return list(self.made)

    def create(self, _image, name, labels, **how):
        made = SimpleNamespace(name=name, labels=labels, how=how, status="created", attrs={"State": {**self.state}})
        made.put_archive = lambda *_: True
        made.stop = lambda **_: setattr(made, "status", "exited")
        made.remove = lambda **_: self.made.remove(made)
        made.start = lambda: (setattr(made, "status", "running"), began(made, 0))
        made.reload = lambda: setattr(made, "status", "exited")
        made.logs = lambda **_: self.log.encode()
        self.made.append(made)
        return made


@pytest.fixture
def engine(monkeypatch):
    def use(**how):
        fake = FakeEngine(**how)
        monkeypatch.setattr(docker, "from_env", lambda **_: fake)
        return fake

    return use


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def up(**how):
    wanted = {"members": 2, "port": None, "heap": "256m", "version": "5.6.0", "config": None} | how
    Containers("test").up(**wanted, progress=lambda _: None)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Docker's library leaves a socket open
def test_a_missing_engine(monkeypatch, tmp_path):
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nobody")
    with pytest.raises(ContainerError, match="No container engine answers") as raised:
        Containers("test")
    assert "DOCKER_HOST" in raised.value.hint
    del raised
    gc.collect()


def test_a_forbidden_engine(monkeypatch):
    def refuse(**_):
        raise DockerException("Error while fetching server API version: PermissionError(13, 'Permission denied')")

    monkeypatch.setattr(docker, "from_env", refuse)
    with pytest.raises(ContainerError, match="may not use the container engine"):
        Containers("test")


def test_an_unknown_image(engine):
    engine(images=False)
    with pytest.raises(ContainerError, match=r"no image `docker.io/hazelcast/hazelcast:5\.6\.0` here"):
        up()
    with pytest.raises(ContainerError) as raised:
        Containers("test").scale("flights", 1, GridSettings(members=["127.0.0.1:1"]), "gridscore")
    assert "make image" in raised.value.hint


def test_a_port_in_use(engine):
    engine()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(MemberError, match="is in use"):
            up(members=1, port=taken.getsockname()[1])


def test_a_port_that_somebody_takes_meanwhile(engine):
    """As another `up` at the same moment does: others are tried, unless this one was asked for."""
    fake = engine(log="BindException: Address already in use")
    with pytest.raises(ContainerError, match="is in use"):
        up(members=1, port=free_port())
    assert len(fake.made) == 1
    fake.made.clear()
    names, create = [], fake.create

    def create_and_be_ready_at_last(image, name, **how):
        names.append(name)
        made = create(image, name, **how)
        if len(names) > 4:
            made.reload = lambda: None
            fake.log = "Members {size:2, ver:2} [ ... ] is STARTED"
        return made

    fake.create = create_and_be_ready_at_last
    up(members=2)
    assert names == ["gridscore-test-member-1", "gridscore-test-member-2"] * 3
    assert [each.status for each in fake.made] == ["running"] * 2


def test_too_little_memory(engine):
    engine(memory=1 << 30)
    with pytest.raises(ContainerError, match=r"may need 1\.6 GB, but the container engine has 1\.1 GB"):
        up()
    engine(memory=1 << 29)
    with pytest.raises(ContainerError, match=r"^1 worker may need 1\.1 GB"):
        Containers("test").scale("flights", 1, GridSettings(members=["127.0.0.1:1"]), "gridscore")


def test_a_member_that_is_out_of_memory(engine):
    engine(state={"OOMKilled": True})
    with pytest.raises(ContainerError, match="ran out of memory"):
        up()


def test_a_member_that_ends_shows_its_last_lines(engine):
    engine(log="SEVERE: Invalid configuration\n\tat com.hazelcast.Some.where")
    with pytest.raises(ContainerError, match="Invalid configuration") as raised:
        up()
    assert "at com.hazelcast" not in raised.value.message


def test_what_runs_already_is_not_taken_for_what_was_asked(engine, tmp_path):
    engine(log="x")
    with pytest.raises(ContainerError):
        up()
    another = tmp_path / "hazelcast.yaml"
    another.write_text("hazelcast: {}")
    for asked in {"members": 3}, {"version": "5.7.0"}, {"heap": "512m"}, {"port": 1}, {"config": another}:
        with pytest.raises(UsageError, match=rf"has 2 members in containers already; --{next(iter(asked))} cannot"):
            up(**asked)
    for asked in {}, {"version": None, "heap": None, "members": None}:
        with pytest.raises(ContainerError, match="has ended"):
            up(**asked)


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (requests.exceptions.ConnectionError("refused"), "does not answer any more"),
        (requests.exceptions.ReadTimeout("120 s"), "does not answer any more"),
        (urllib3.exceptions.ProtocolError("broken"), "does not answer any more"),
        (APIError("500 Server Error"), "The container engine refuses: 500 Server Error"),
    ],
)
def test_an_engine_that_goes_away_is_an_error_for_people_whatever_it_is_asked(engine, failure, said):
    engine(log="x")
    containers = Containers("test")
    with pytest.raises(ContainerError, match="has ended"):
        up(members=1)

    def fail(*_, **__):
        raise failure

    (member,) = containers._find("member")
    member.logs = fail
    for follow in (False, True):
        with pytest.raises(ContainerError, match=said):
            containers.logs(lambda *_: None, tail=1, follow=follow)
    containers._client.list = fail
    for ask in (
        lambda: containers.addresses,
        lambda: containers.workers("flights"),
        lambda: containers.scale("flights", 1, GridSettings(members=["127.0.0.1:1"]), "gridscore"),
        containers.down,
        up,
    ):
        with pytest.raises(ContainerError, match=said):
            ask()


def test_workers_are_given_no_credentials(engine):
    engine()
    with pytest.raises(UsageError, match="no credentials"):
        Containers("test").scale("flights", 1, GridSettings(members=["127.0.0.1:1"], token="x"), "gridscore")  # noqa: S106


def test_a_worker_has_little_power(engine):
    made = engine().made
    Containers("test").scale("flights", 2, GridSettings(members=["127.0.0.1:1"]), "gridscore")
    assert [each.name for each in made] == ["gridscore-test-flights-worker-1", "gridscore-test-flights-worker-2"]
    assert all(each.how["read_only"] and each.how["cap_drop"] == ["ALL"] for each in made)


def test_workers_that_run_stay_and_those_that_were_stopped_go_first(engine):
    made = engine().made
    containers, settings = Containers("test"), GridSettings(members=["127.0.0.1:1"])
    containers.scale("flights", 3, settings, "gridscore")
    first, second, third = made
    first.stop()
    containers.scale("flights", 2, settings, "gridscore")
    assert made == [second, third]
    third.stop()
    containers.scale("flights", 2, settings, "gridscore")
    assert [each.status for each in made] == ["running", "running"]


def began(container, seconds_ago, *, restarts=0):
    """Let the present run of a container have begun so long ago, after so many that ended."""
    at = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=seconds_ago)
    container.attrs["State"]["StartedAt"] = at.isoformat()
    container.attrs["RestartCount"] = restarts


@pytest.mark.parametrize("status", ["running", "restarting", "exited"])
def test_a_worker_that_ends_again_and_again_is_named_and_goes_first(engine, status):
    fake = engine(log="Worker 1 is looking for jobs.\nno room left\n")
    containers, settings = Containers("test"), GridSettings(members=["127.0.0.1:1"])
    containers.scale("flights", 2, settings, "gridscore")
    first, second = fake.made
    began(first, 50, restarts=2)
    began(second, 50)
    first.status = status
    with pytest.raises(ContainerError, match=r"worker-1 ends again and again\. Its last lines:\n.*\n  no room left"):
        containers.await_workers("flights")
    first.attrs["State"]["OOMKilled"] = True
    assert "again. It ran out of memory. Its" in str(containers.failure(first))
    first.logs = lambda **_: (_ for _ in ()).throw(APIError("configured logging driver does not support reading"))
    assert "They cannot be read: configured logging driver" in str(containers.failure(first))
    containers.scale("flights", 1, settings, "gridscore")
    assert fake.made == [second]
    containers.await_workers("flights")


def test_a_worker_that_ended_long_ago_is_not_named(engine):
    fake = engine(log="")
    containers, settings = Containers("test"), GridSettings(members=["127.0.0.1:1"])
    containers.scale("flights", 1, settings, "gridscore")
    began(fake.made[0], 61, restarts=9)
    containers.await_workers("flights")


def test_ends_count_since_a_worker_last_ran_for_long(engine):
    fake = engine(log="flights: holds its first partitions")
    settings = GridSettings(members=["127.0.0.1:1"])
    Containers("test").scale("flights", 2, settings, "gridscore")
    often, steady = fake.made
    began(often, 61, restarts=9)
    began(steady, 61)
    watching = Containers("test")
    watching.await_workers("flights")
    for restarts, fails in ((10, False), (11, True)):
        began(often, 0, restarts=restarts)
        assert [watching.fails(each) for each in watching.workers("flights")] == [fails, False]
    # A command that begins only now has seen none of that.
    new = Containers("test")
    new.await_workers("flights")
    began(often, 0, restarts=12)
    new.await_workers("flights")
    began(often, 0, restarts=13)
    with pytest.raises(ContainerError, match="worker-1 ends again and again"):
        new.await_workers("flights")
    # Started by somebody, it counts anew.
    for restarts, fails in ((0, False), (1, False), (2, True)):
        began(often, 0, restarts=restarts)
        assert [new.fails(each) for each in new.workers("flights")] == [fails, False]
    Containers("test").scale("flights", 1, settings, "gridscore")
    assert fake.made == [steady]


def test_a_worker_is_waited_for_until_it_says_that_it_works(engine, monkeypatch):
    fake = engine(log="Worker 1 is looking for jobs.")
    monkeypatch.setattr("gridscore.containers.START_SECONDS", 0.5)
    containers, settings = Containers("test"), GridSettings(members=["127.0.0.1:1"])
    containers.scale("flights", 1, settings, "gridscore")
    (worker,) = fake.made
    # More workers than partitions: it may never hold one.
    began(worker, 10)
    containers.await_workers("flights")
    began(worker, 0, restarts=1)
    with pytest.raises(ContainerError, match="worker-1 did not begin to work in"):
        containers.await_workers("flights")
    fake.log = "flights: holds its first partitions, 1.0 s after the start of this process"
    containers.await_workers("flights")
