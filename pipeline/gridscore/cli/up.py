"""`gridscore up`: a real cluster on this machine, for as long as the command runs."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from pathlib import Path  # noqa: TC003 -- typer reads the annotations
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gridscore.cli.options import Json  # noqa: TC001 -- typer reads the annotations
from gridscore.cli.output import console, errors, print_json, print_selection, safe, say, selection
from gridscore.errors import UsageError
from gridscore.texts import count_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gridscore.grid.member import Cluster

_LOOK_SECONDS = 0.5


def up(
    *,
    members: Annotated[
        int | None, typer.Option("--members", "-n", min=1, max=16, help="How many members.", show_default="1")
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="Port of the first member; the next follow. Else the first free ones from 5701.")
    ] = None,
    heap: Annotated[
        str | None, typer.Option(help="Java heap of each member.", metavar="SIZE", show_default="1g")
    ] = None,
    cluster_name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Else the one in the configuration; another: beside it.")
    ] = None,
    version: Annotated[
        str | None, typer.Option(help="Hazelcast's version.", show_default="5.6.0, or GRIDSCORE_HAZELCAST")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A hazelcast.yaml of your own; its network is adjusted to this machine."),
    ] = None,
    kafka: Annotated[
        bool, typer.Option("--kafka", help="With the Kafka connector: SQL can then read topics, see docs/sources.md.")
    ] = False,
    docker: Annotated[
        bool, typer.Option("--docker", help="As containers, which go on when the command ends; see `gridscore down`.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run a Hazelcast cluster on this machine until Ctrl-C. It needs no Java, Maven or Docker.

    Other commands on this machine find it. If it runs already, the command says where, and ends; one of another
    --cluster-name is started beside it, and is selected by that name, or the environment variables that are printed.

    Example: [bold]gridscore up --members 3 --heap 512m[/]
    """
    from gridscore.errors import MemberError
    from gridscore.grid.artifacts import DEFAULT_VERSION
    from gridscore.grid.member import Cluster, config_identity, running_cluster

    if docker:
        if kafka:
            raise UsageError("--kafka is for members without --docker.", "The public image lacks the connector.")
        how = {"members": members, "port": port, "heap": heap, "version": version, "config": config}
        _in_containers(cluster_name, as_json=as_json, **how)
        return
    asked = {
        "members": members,
        "port": port,
        "heap": heap,
        "version": version,
        "config": config_identity(config),
        "kafka": kafka,
    }
    if running := running_cluster(cluster_name):
        _refuse_another(running, asked)
        _report(running, as_json=as_json, already=True)
        return
    with _signals() as ended:
        try:
            with errors.status("Looking for Hazelcast") as status:

                def progress(text: str) -> None:
                    status.update(safe(text))
                    if not errors.is_terminal:
                        say(text)

                cluster = Cluster.start(
                    members or 1,
                    port=port,
                    heap=heap or "1g",
                    cluster_name=cluster_name,
                    version=version or DEFAULT_VERSION,
                    config=config,
                    kafka=kafka,
                    on_progress=progress,
                    register=True,
                )
        except MemberError:
            # Two commands at the same moment: the other one was first.
            if running := running_cluster(cluster_name):
                _refuse_another(running, asked)
                _report(running, as_json=as_json, already=True)
                return
            raise
        with cluster:
            _report(cluster.state(), as_json=as_json, already=False)
            _watch(cluster, ended)
            errors.print("Stopping")


def _in_containers(cluster_name: str | None, *, as_json: bool, **how: Any) -> None:
    from gridscore.containers import Containers

    containers = Containers(cluster_name)
    containers.up(**how, progress=say)
    environment = selection(containers.addresses, containers.cluster_name)
    if as_json:
        print_json(
            {"cluster_name": containers.cluster_name, "members": containers.addresses, "environment": environment}
        )
        return
    console.print(f"Cluster [bold]{safe(containers.cluster_name)}[/] runs in containers")
    print_selection(console, environment)
    console.print("Next: [bold]gridscore scale JOB worker=2[/] starts workers, [bold]gridscore down[/] ends it all.")


def _refuse_another(running: dict[str, Any], asked: dict[str, Any]) -> None:
    """Refuse what was asked for if the cluster that runs already is not like that."""
    is_so = {
        "members": len(running["members"]),
        "port": int(running["members"][0].rpartition(":")[2]),
        "heap": running["heap"],
        "version": running["version"],
        "config": running.get("config"),
        "kafka": running.get("kafka"),
    }
    other = [f"--{name}" for name, value in asked.items() if value and value != is_so.get(name)]
    if other:
        name = running["cluster_name"]
        raise UsageError(
            f"Cluster `{name}` already runs here, at {', '.join(running['members'])}; {', '.join(other)} cannot change "
            "that.",
            f"Stop it first (Ctrl-C where it was started, or end process {running['owner']['pid']}), or start another "
            "beside it: --cluster-name OTHER.",
        )


def _watch(cluster: Cluster, ended: threading.Event) -> None:
    """Return when we are asked to end; report members that die; raise when none is left."""
    told: set[int] = set()
    while not ended.wait(_LOOK_SECONDS):
        for index, address in enumerate(cluster.addresses):
            death = cluster.death(index)
            if death is None or index in told:
                continue
            told.add(index)
            if not any(cluster.alive):
                raise death
            errors.print(f"[bold yellow]warning:[/] {address} is gone.")
            say(death, layout=True)


@contextmanager
def _signals() -> Iterator[threading.Event]:
    """Ctrl-C, `kill` and a closed terminal end the wait, and so stop the members in order.

    Ctrl-C is the normal end, so the exit code is 0. Before the members are up it interrupts their start.
    """
    ended = threading.Event()

    def end(*_: Any) -> None:
        if ended.is_set():
            return  # already stopping
        ended.set()
        raise _Interrupted

    names = [name for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {name: signal.signal(getattr(signal, name), end) for name in names}
    try:
        yield ended
    except _Interrupted:
        pass
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)


class _Interrupted(BaseException):
    """A signal asked us to end. Not an Exception, so that nothing on the way takes it for a failure."""


def _report(state: dict[str, Any], *, as_json: bool, already: bool) -> None:
    environment = selection(state["members"], state["cluster_name"])
    if as_json:
        print_json({**state, "already_running": already, "environment": environment})
        return
    count = len(state["members"])
    what = f"Hazelcast {safe(state['version'])}, cluster [bold]{safe(state['cluster_name'])}[/]"
    if already:
        console.print(f"{what} runs already (process {state['owner']['pid']})")
    else:
        console.print(f"{what} is up: {count_text(count, 'member')}")
    for address, log in zip(state["members"], state["log_files"], strict=True):
        console.print(f"  [bold]{safe(address)}[/]  {safe(log)}")
    print_selection(console, environment)
    console.print(
        "Next, in another terminal: [bold]gridscore doctor[/] checks the cluster, [bold]gridscore submit JOB[/] scores "
        "your events."
    )
    if not already:
        console.print("Ctrl-C stops it; its data is in memory only.")
