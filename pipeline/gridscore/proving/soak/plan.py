"""The plan of a soak: which fault happens when, to whom and for how long; the same for a seed, always."""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from gridscore.errors import UsageError
from gridscore.group.fence import Fence

KINDS = {
    "worker-kill": "a worker is killed with -9, and another one started in its place",
    "pause": "a worker is stopped for shorter or longer than its lease (SIGSTOP), and goes on (SIGCONT)",
    "pause-hold": "a worker is stopped until its lease is nearly over, and what it then sends is held for a moment",
    "pause-cut": "a worker is stopped until its lease is nearly over, and what it then sends comes to nobody",
    "heir-kill": "a worker is killed with -9, and then whoever is the first about to take over from it",
    "both-kill": "a worker that holds partitions is killed with -9, and the member that has its heartbeat",
    "leave": "a worker is asked to stop (SIGTERM), and another one started in its place",
    "member-kill": "a member is killed with -9, and started again",
    "member-pause": "a member is stopped for shorter or longer than its heartbeats may fail (SIGSTOP), and goes on",
    "member-cut": "nothing goes between a member and the others, for shorter or longer than their heartbeats may fail",
    "cut": "nothing goes between a worker and the members for longer than its lease, then the connections are reset",
    "hold": "what goes between a worker and the members is held for less than the system would hold it, then goes on",
}

WARM_UP_SECONDS = 3.0
_BACK_SECONDS = 4.0  # what a worker is given, after its fault is over, before the next one may be done to it
_SHORT = 0.4  # part of the pauses that are about as long as a lease, or shorter
HEARTBEAT_SECONDS = 10.0  # for how long a member of a soak may be silent before the others take it for dead
HEARTBEAT_INTERVAL_SECONDS = 1.0

# What a member takes to start or to merge, and to have its partitions back, about; the trial waits for it in any case.
_MEMBER_BACK_SECONDS = 14.0

# Part of the kills that come at the end, when nothing else is done: so it shows how long a takeover takes.
_ALONE = 0.75

_ALONE_FROM = 10  # how many kills there must be for that
# How long a takeover may take beyond the lease: until others have seen it, and what may be under way has settled.
TAKEOVER_SECONDS = 5.0

SEEN_SECONDS = 3.0  # how much later the recorder may see it, which looks once a second


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault."""

    number: int  # counts the faults of a plan from 0, in the order of their times
    kind: str  # one of `KINDS`
    at: float  # seconds from the beginning of the load; the earliest, for it waits until its victim is well
    seconds: float  # how long it lasts: until the worker or member is started again, or goes on
    worker: int | None = None  # the slot of the worker it is done to
    # The index of the member it is done to; for a cut, the one member that the worker is cut from, or None for all of
    # them.
    member: int | None = None
    hold: float = 0.0  # seconds for which, after a pause, what the worker sends is held, or its network is cut
    alone: bool = False  # whether it waits until all faults that are not are over

    def __str__(self) -> str:
        named = (("worker", self.worker), ("member", self.member))
        whom = ", ".join(f"{what} {index}" for what, index in named if index is not None)
        return " ".join((self.kind, *(("of", whom) if whom else ()), f"for {self.seconds:.1f} s"))


@dataclass(frozen=True, slots=True)
class Counts:
    """How many faults of each kind."""

    worker_kills: int = 20
    pauses: int = 5
    leaves: int = 5
    member_kills: int = 6
    cuts: int = 3
    holds: int = 2
    pause_holds: int = 4
    member_pauses: int = 2
    member_cuts: int = 2
    pause_cuts: int = 2
    heir_kills: int = 2
    both_kills: int = 2

    @property
    def total(self) -> int:
        return sum(asdict(self).values())

    @property
    def of_members(self) -> int:
        """Those that are done to members, some of them to a worker as well."""
        return self.member_kills + self.member_pauses + self.member_cuts + self.both_kills


@dataclass(frozen=True, slots=True)
class Plan:
    """A schedule of faults, made from a seed."""

    seed: int  # from which it was made, together with what follows
    # Over which the faults are spread, from the beginning of the load; longer than what was asked for if they need
    # longer.
    seconds: float
    lease: float  # lease time of the workers, in seconds
    faults: tuple[Fault, ...]  # in the order of their times

    @classmethod
    def make(cls, seed: int, counts: Counts, *, seconds: float, lease: float, workers: int, members: int) -> Self:
        """Draw a plan.

        At most half of the workers suffer at a time, one member is down at a time, and workers and members suffer
        independently of each other. At the end there are only kills of workers, and after each few of them as much
        time as a takeover may take.

        Args:
            seed: Any number. The same seed with the same other arguments gives the same plan.
            counts: How many faults of each kind.
            seconds: Over which to spread them.
            lease: Lease time of the workers, in seconds.
            workers: How many there are.
            members: How many there are; those that cannot be killed count as well, for cuts.

        Raises:
            UsageError: There are too few workers or members for these faults.
        """
        if counts.total > counts.of_members - counts.both_kills and workers < 2:
            raise UsageError("Faults of workers need two workers at least.", "Raise --workers.")
        if counts.member_kills + counts.member_cuts + counts.both_kills and members < 3:
            raise UsageError(
                "Killing or cutting off members needs three of them: fewer have no majority left.",
                "Take --members 3, or --member-kills 0 --member-cuts 0 --both-kills 0.",
            )
        draw = random.Random(seed)  # noqa: S311 -- it is to be repeated
        alone = _kills_alone(draw, counts, lease, workers)
        among = replace(counts, worker_kills=counts.worker_kills - len(alone))
        length = alone[-1]["at"] if alone else 0.0
        found = _worker_faults(draw, among, seconds - length, lease, workers, members)
        found += _member_faults(draw, among, seconds - length, members)
        begin = max((fault["at"] + fault["seconds"] for fault in found), default=WARM_UP_SECONDS)
        found += [{**fault, "at": round(begin + fault["at"], 2)} for fault in alone]
        found.sort(key=lambda fault: fault["at"])
        faults = tuple(Fault(number, **fault) for number, fault in enumerate(found))
        end = max((fault.at + fault.seconds for fault in faults), default=0.0)
        return cls(seed, round(max(seconds, end + _BACK_SECONDS), 1), lease, faults)

    def lines(self) -> list[str]:
        """The plan for people, a line a fault."""
        return [f"{fault.at:7.1f} s  {fault}" for fault in self.faults]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def _worker_faults(
    draw: random.Random, counts: Counts, seconds: float, lease: float, workers: int, members: int
) -> list[dict[str, Any]]:
    kinds = ["worker-kill"] * counts.worker_kills + ["pause"] * counts.pauses + ["leave"] * counts.leaves
    kinds += ["cut"] * counts.cuts + ["hold"] * counts.holds + ["pause-hold"] * counts.pause_holds
    kinds += ["pause-cut"] * counts.pause_cuts + ["heir-kill"] * counts.heir_kills
    draw.shuffle(kinds)
    gap = (seconds - WARM_UP_SECONDS) / max(1, len(kinds))
    suffering = max(1, workers // 2)
    busy_until = [0.0] * workers
    faults: list[dict[str, Any]] = []
    at = WARM_UP_SECONDS
    cuts = 0
    for index, kind in enumerate(kinds):
        at = max(at, WARM_UP_SECONDS + gap * (index + draw.uniform(0.0, 0.8)))
        # So many others must be well again first.
        at = max(at, sorted(busy_until, reverse=True)[suffering - 1])
        worker = draw.choice([slot for slot in range(workers) if busy_until[slot] <= at])
        length = round(_length(draw, kind, lease), 2)
        faults.append({"kind": kind, "at": round(at, 2), "seconds": length, "worker": worker})
        if kind == "pause-hold":
            faults[-1]["hold"] = round(draw.uniform(0.8, 0.98) * Fence.of(lease).hold, 2)
        if kind == "pause-cut":
            faults[-1]["hold"] = round(draw.uniform(1.0, 2.0) * lease, 2)
        if kind == "cut":
            # The first is from all members, the next from one: then the worker lives on with half of its grid.
            if cuts % 2:
                faults[-1]["member"] = draw.randrange(members)
            cuts += 1
        busy_until[worker] = at + length + faults[-1].get("hold", 0.0) + _BACK_SECONDS
    return faults


def _kills_alone(draw: random.Random, counts: Counts, lease: float, workers: int) -> list[dict[str, Any]]:
    """The kills at the end; half of the workers together, and those first that have lived the longest."""
    faults: list[dict[str, Any]] = []
    if counts.worker_kills < _ALONE_FROM:
        return faults
    together = max(1, workers // 2)
    at = _MEMBER_BACK_SECONDS
    for index in range(round(counts.worker_kills * _ALONE)):
        # Mostly another worker starts at once, as a supervisor would have it: so there is time for many.
        length = round(draw.uniform(0.1, 1.5) if index % 5 else draw.uniform(lease, 2 * lease), 2)
        fault = {"kind": "worker-kill", "at": at, "seconds": length, "worker": index % workers, "alone": True}
        faults.append(fault)
        at += draw.uniform(0.0, lease)
        if index % together == together - 1:
            at = max(each["at"] + each["seconds"] for each in faults) + lease + TAKEOVER_SECONDS + SEEN_SECONDS
    return faults


def _length(draw: random.Random, kind: str, lease: float) -> float:
    """How long a fault lasts, in seconds."""
    if kind in ("worker-kill", "heir-kill"):
        # Now and then nobody comes back before the others have noticed.
        return draw.choice((draw.uniform(0.0, 1.5), draw.uniform(lease, 2 * lease)))
    if kind == "leave":
        return draw.uniform(0.0, lease)
    if kind == "hold":
        return draw.uniform(0.4, 0.95) * Fence.of(lease).hold
    if kind in ("pause-hold", "pause-cut"):
        # It may have used up to a third of the lease since it renewed: about when it must no longer send.
        return draw.uniform(Fence.of(lease).send - lease / 3, lease)
    if kind == "pause" and draw.random() < _SHORT:
        return draw.uniform(0.2, 1.2) * lease
    return draw.uniform(1.5, 3.0) * lease  # well past the lease


def _member_faults(draw: random.Random, counts: Counts, seconds: float, members: int) -> list[dict[str, Any]]:
    faults: list[dict[str, Any]] = []
    gap = (seconds - WARM_UP_SECONDS) / max(1, counts.of_members)
    at = WARM_UP_SECONDS
    kinds = ["member-kill"] * counts.member_kills + ["member-pause"] * counts.member_pauses
    kinds += ["member-cut"] * counts.member_cuts + ["both-kill"] * counts.both_kills
    draw.shuffle(kinds)
    for index, kind in enumerate(kinds):
        at = max(at, WARM_UP_SECONDS + gap * (index + draw.uniform(0.0, 0.5)))
        missed = True
        if kind in ("member-kill", "both-kill"):
            length = draw.uniform(0.5, 8.0)
        else:
            missed = kinds[:index].count(kind) % 2 == 0
            length = (
                draw.uniform(1.2, 2.0) * HEARTBEAT_SECONDS if missed else draw.uniform(0.1, 0.8) * HEARTBEAT_SECONDS
            )
        length = round(length, 2)
        # Which worker is killed with a member, and which member has its heartbeat, is seen when it is done.
        member = None if kind == "both-kill" else draw.randrange(members)
        faults.append({"kind": kind, "at": round(at, 2), "seconds": length, "member": member})
        at += length + (_MEMBER_BACK_SECONDS if missed else _BACK_SECONDS)
    return faults
