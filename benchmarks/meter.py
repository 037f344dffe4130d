"""CPU and time of a measurement: of those who score, of the members, of this process, and of everybody else."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


@dataclass(frozen=True, slots=True)
class Usage:
    """What was used within a window. The system counts CPU in steps of 10 ms a process."""

    seconds: float  # length of the window
    scorers: float  # CPU seconds of those who score, children among them
    services: float  # CPU seconds of the members, or of what takes their place
    harness: float  # CPU seconds of this process
    others_cores: float  # cores that everybody else on the machine used
    each: tuple[float, ...] = ()  # CPU seconds of each that scores, without its children

    @property
    def harness_cores(self) -> float:
        """Cores that this process used."""
        return self.harness / self.seconds


class Meter:
    """Counts from when it was made.

    Args:
        scorers: Process ids, other than this process's own. Their children count with them, but for those that are born
            later.
        services: Process ids. Their children do not: the members' are the scorers of some systems.
    """

    def __init__(self, scorers: Sequence[int], services: Sequence[int]) -> None:
        self._each = list(scorers)
        self._scorers = _families(scorers)
        self._services = services
        self.begin()

    def begin(self) -> None:
        """Count from now. Making a meter takes a while on a busy machine, as it looks for children; this does not."""
        self._began = _busy()
        self._scorers_before = _cpu(self._scorers)
        self._each_before = [_cpu([pid]) for pid in self._each]
        self._services_before = _cpu(self._services)
        self._harness_before = time.process_time()
        self._began_at = time.perf_counter()

    def read(self) -> Usage:
        """What has been used since."""
        passed = time.perf_counter() - self._began_at
        harness = time.process_time() - self._harness_before
        scorers = max(0.0, _cpu(self._scorers) - self._scorers_before)
        services = _cpu(self._services) - self._services_before
        others = _busy() - self._began - scorers - services - harness
        each = tuple(_cpu([pid]) - before for pid, before in zip(self._each, self._each_before, strict=True))
        return Usage(passed, scorers, services, harness, max(0.0, others) / passed, each)


def resident_bytes(pids: Iterable[int]) -> int:
    """The most memory that any of these processes has resident."""
    sizes = [0]
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            sizes.append(psutil.Process(pid).memory_info().rss)
    return max(sizes)


def _families(pids: Sequence[int]) -> list[int]:
    """The processes and their children and children's children, each once."""
    found = dict.fromkeys(pids)
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            found |= dict.fromkeys(child.pid for child in psutil.Process(pid).children(recursive=True))
    return list(found)


def _cpu(pids: Iterable[int]) -> float:
    seconds = 0.0
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = psutil.Process(pid).cpu_times()
            seconds += times.user + times.system
    return seconds


def _busy() -> float:
    """CPU seconds of the whole machine; what a system does not tell apart is nothing."""
    times = psutil.cpu_times()
    return sum(getattr(times, name, 0.0) for name in ("user", "nice", "system", "irq", "softirq", "steal"))
