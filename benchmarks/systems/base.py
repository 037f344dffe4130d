"""What the harness knows of a system under test: how to start it on a backlog or live events, and what it has done."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from pathlib import Path

    from benchmarks.work import Work
    from gridscore.grid import Grid


@dataclass(frozen=True, slots=True)
class Bed:
    """What a system is measured on.

    Attributes:
        grid: The harness's own connection to the cluster. Its lookups are loaded; the events of the work are in the
            journalled map `work.job.events` while throughput is measured.
        addresses: Of the members, `host:port`.
        cluster_name: What clients must name.
        member_pids: The members' processes.
        work: What is to be scored.
        files: The work as files, for systems that take no other form; see `Work.save`.
        folder: Scratch, for logs and whatever else; the harness removes it.
        progress: Called with a line for people.
    """

    grid: Grid
    addresses: Sequence[str]
    cluster_name: str
    member_pids: Sequence[int]
    work: Work
    files: Path
    folder: Path
    progress: Callable[[str], None]


class System(abc.ABC):
    """A way to get events scored. Made anew for each bed, used for many runs there.

    The order of calls: `prepare`, then any number of runs (`start` … `stop`), then `close`, whatever happened.

    Attributes:
        name: Short, for the command line and for results: `jet-dictionary`.
        title: For people: `Jet mapUsingPython, lookups in a dictionary`.
        tuning: How it was tuned, for the report; a sentence or several.
        share: The part of the work's events that a throughput run takes; less than 1 for what would take minutes.
        in_grid: Whether events come from, and results go to, the maps of the bed; if not, the CPU of `service_pids`
            takes the place of the members'.
        takes_backlog: Whether it can work off what lies there already. If not (a listener, a web server), it is never
            started with `backlog`: for throughput it is started for live events, and the harness sends `share` of the
            work's events by `send`, with up to 2,000 of them outstanding as `watch` tells; a run of the same kind that
            finds the saturation for latencies. Where it has events in the grid, they go to a map of its own: others
            have their backlog in `work.job.events`, and would read these, too.
    """

    name: str
    title: str
    tuning: str
    share: float = 1.0
    in_grid: bool = True
    takes_backlog: bool = True

    def __init__(self, bed: Bed) -> None:
        self.bed = bed

    @abc.abstractmethod
    async def prepare(self) -> None:
        """Start what runs are made of (a broker, say) and load it with the backlog, if it is not the bed's map.

        Raises:
            GridscoreError: It cannot be had here; the message says why.
        """

    @abc.abstractmethod
    async def start(self, *, backlog: bool) -> None:
        """Begin a run. With `backlog`, score the events that are there already; else only those that come from now on.

        For live events it returns when a new event would be scored at once; for a backlog, as soon as it has begun.
        """

    @abc.abstractmethod
    async def results(self) -> int:
        """Results of this run that are there by now, as seen from outside; cheap enough to ask 50 times a second."""

    @abc.abstractmethod
    async def scores(self, numbers: Collection[int]) -> dict[int, float]:
        """The field `score` of the results of these events in this run, by number; without those that have none.

        Called between the last result and `stop`, with some hundred numbers. They are compared with offline scores, as
        float32, bit by bit: this is what shows that the work was done.
        """

    async def stages(self) -> dict[str, float]:
        """CPU microseconds per event of this run, by stage; nothing if the system does not know.

        Called between the last result and `stop`.
        """
        return {}

    @abc.abstractmethod
    async def stop(self) -> None:
        """End the run, and take its results away, so that the next one begins like the first."""

    @abc.abstractmethod
    async def close(self) -> None:
        """End every process, remove every map and topic. A second call does nothing."""

    @abc.abstractmethod
    def pids(self) -> list[int]:
        """The processes that score, in this run; without the members, brokers and load generators."""

    def service_pids(self) -> list[int]:
        """What takes the place of the members, for systems beside the grid: the broker, say."""
        return list(self.bed.member_pids)

    @abc.abstractmethod
    async def watch(self, seen: Callable[[int], None]) -> None:
        """Call `seen` with the number of each event (`e17` is 17) when the application sees its result. Once a run."""

    @abc.abstractmethod
    def send(self, number: int, text: bytes) -> None:
        """Send event `number` now, without waiting for anything: as one put, message or request."""

    async def check(self) -> None:  # noqa: B027 -- most have nothing to look at
        """Raise if there is no use in waiting any longer.

        Raises:
            GridscoreError: Something has ended; with its last lines.
        """
