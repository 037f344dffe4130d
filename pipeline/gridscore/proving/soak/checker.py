"""The checker of a soak: what should have come out, computed again offline, against what did.

It takes nobody's word. Expected scores come from the ledger, by pandas and XGBoost alone and none of our code; what was
written comes from the result map's own journal; who owned a partition when, from the lease records as they were seen.

Judged are:

1. *Lost*: an acknowledged event that has no result. The map shows it for the newest event of a key, the journal for
   those that were replaced since.
2. *Wrong*: a result, anywhere, that is not bit for bit the expected one, of no acknowledged event, under another key;
   or one in the map that is not that of the event that is in the event map.
3. *Late*: a write by an owner whose time was over. In a partition's journal, epochs never go down; nor is there a lower
   epoch behind a position at which the journal ended when a lease record was known to have a higher one.
4. *Slow*: a killed worker's partitions that were taken over too late. The time counts anew when another worker is
   killed or leaves, or another fault is over: it may have hit whoever was about to take over, see `_patience`.
5. *Double*: an event of one sequence written twice. Each has a cause. Whoever leaves in order, or gives partitions to
   others, causes none; one who is killed, cut off or paused, at most what was under way: what stood in the journal
   before the next owner had its lease was there to be seen. What a member took with it is written again.

What could not be judged is counted, and said.
"""

from __future__ import annotations

import datetime as dt
import math
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gridscore.proving.soak.evidence import pid_of
from gridscore.proving.soak.plan import HEARTBEAT_INTERVAL_SECONDS, HEARTBEAT_SECONDS, SEEN_SECONDS, TAKEOVER_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from gridscore.proving.soak.evidence import Acknowledged, Evidence, Incident, Mark, Result, Write

EXAMPLES = 5  # cases of each kind that are spelled out
# How long before a fault what it hits may have been scored, on a machine that is fully loaded: a write that a member
# does not acknowledge is given up later.
_UNDER_WAY_MS = 3_000

# How long after a member is back, and every partition has its backup, something may still be a consequence.
_AFTERMATH_MS = 5_000

_BACK_MS = 10_000  # how long after a member is back it is busy with its partitions, more than with what workers ask for
# How long it takes a member that is split off to find itself alone, at most, on a machine that is fully loaded.
_MOMENT_MS = 2_000

_LOOK_MS = 3_000  # how long before it is written an event may have been looked for among the results that stand
_SUSPICION = re.compile(
    r"\]:(\d+) \S+ \S+ Suspecting Member \[\S+\]:(\d+) .* heartbeats since ([-\d]+ [:.\d]+)\. Now: ([-\d]+ [:.\d]+),"
)

_GONE = ("worker-kill", "crash", "leave")  # faults after which a worker never comes back
_CHAIN_MS = 60_000  # how long faults beside a takeover may follow one another; a longer time would prove nothing
# Faults that may cause doubles.
UNORDERLY = ("worker-kill", "pause", "pause-hold", "cut", "hold", "member-kill", "member-pause", "member-cut", "crash")


@dataclass(slots=True)
class Finding:
    """How often something was found, with some examples."""

    count: int = 0  # how often
    examples: list[str] = field(default_factory=list)  # the first few, for people

    def add(self, example: str) -> None:
        self.count += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(example)


@dataclass(slots=True)
class Doubles:
    """Events written twice because of one fault."""

    # The kind of the fault; `rebalance` if the partition changed its owner while both lived, `unexplained` if there was
    # no fault.
    cause: str
    incident: int | None  # its number in the plan; None without a fault
    count: int = 0  # how many writes too many
    bound: int = 0  # how many there may be


@dataclass(slots=True)
class Verdict:
    """What came out."""

    acknowledged: int = 0  # events in the ledger
    keys: int = 0  # different keys among them
    writes: int = 0  # writes to the result map that are known
    notices: int = 0  # notifications that the listener had
    lost: Finding = field(default_factory=Finding)  # acknowledged events without a result
    wrong: Finding = field(default_factory=Finding)  # results that are not as they should be
    # Writes by an owner whose time was over; None if results do not say their epoch.
    late: Finding | None = field(default_factory=Finding)
    doubles: list[Doubles] = field(default_factory=list)  # events written twice, by fault
    doubled_notices: int = 0  # notifications of an event and sequence that the listener had had already
    # Those of them that no double write explains, and no member's death.
    unexplained_notices: Finding = field(default_factory=Finding)
    # Acknowledged events that nothing replaced, and that the cluster itself has no more; they are lost as well.
    gone: Finding = field(default_factory=Finding)
    # Keys whose event in the event map is an earlier one than the last that was put: a put of unknown fate was made
    # again, and its first try came late.
    returned: int = 0
    rescued: int = 0  # writes for events that were found in the map, not in the journal
    # Events replaced by later ones, whose own write is not known because of a gap in the record.
    replaced_unseen: int = 0
    # How long the partitions of each killed worker had no owner, at most, as far as it was seen.
    takeover_ms: dict[int, int] = field(default_factory=dict)
    takeovers_judged: int = 0  # kills after which it was judged
    takeovers_beside: int = 0  # those of them that had other faults beside them, and so more time
    slow: Finding = field(default_factory=Finding)  # takeovers that took too long
    unjudged: dict[str, int] = field(default_factory=dict)  # what could not be judged, and how often
    gaps: int = 0  # writes that the record lacks
    # Workers that ended by themselves, or did not stop in order.
    crashes: list[str] = field(default_factory=list)
    # Members that split by themselves: what follows says nothing of workers.
    splits: list[str] = field(default_factory=list)

    @property
    def problems(self) -> list[str]:
        """What is not as it must be, a line each; empty if all is well."""
        found = []
        if not self.acknowledged:
            found.append("No event was acknowledged: nothing was tested.")
        if self.lost.count:
            found.append(f"{self.lost.count:,} acknowledged events have no result.")
        if self.gone.count:
            found.append(f"{self.gone.count:,} acknowledged events are no longer in the cluster: it has lost them.")
        if self.wrong.count:
            found.append(f"{self.wrong.count:,} results are wrong.")
        if self.late is None:
            found.append("Results do not say their epoch, so late writes could not be looked for.")
        elif self.late.count:
            found.append(f"{self.late.count:,} results were written by an owner whose time was over.")
        if self.slow.count:
            found.append(f"{self.slow.count:,} killed workers had their partitions taken over too late.")
        for doubles in self.doubles:
            if doubles.count > doubles.bound:
                fault = "" if doubles.incident is None else f" (fault {doubles.incident})"
                found.append(
                    f"{doubles.count:,} events were written twice by {doubles.cause}{fault}; "
                    f"{doubles.bound:,} at most may be."
                )
        if self.unexplained_notices.count:
            found.append(f"{self.unexplained_notices.count:,} doubled notifications have no cause.")
        return found + self.crashes + self.splits

    @property
    def is_good(self) -> bool:
        return not self.problems


def unplanned_splits(logs: Iterable[Path], ports: Sequence[int], incidents: Iterable[Incident]) -> list[str]:
    """Members that took another for dead though nothing was done to either, as on a machine that is too busy.

    `logs`: of the members; `ports`: by which they know each other, by index; `incidents`: what was done.
    """
    done, found = [each for each in incidents if each.member is not None], []
    for log in logs:
        for ours, theirs, since, at in _SUSPICION.findall(log.read_text(errors="replace")):
            pair = ports.index(int(ours)), ports.index(int(theirs))
            now = dt.datetime.fromisoformat(at).timestamp() * 1000  # members and we have one time zone
            if not any(each.member in pair and each.at <= now <= each.until + _AFTERMATH_MS for each in done):
                found.append(
                    "Members split by themselves, as on a machine that is too busy, so what was lost may not count: "
                    f"with nothing done to either, member {pair[0]} had no heartbeat of member {pair[1]} from {since} "
                    f"to {at}."
                )
    return found


def expected_scores(
    model: Any, customers: Mapping[str, Mapping[str, float]], ledger: Iterable[Acknowledged]
) -> dict[int, float]:
    """Score of each event by its number, from its JSON: the soak's job written once more, in pandas and XGBoost.

    `model`: the Booster that was pushed; `customers`: the entries of the lookup; `ledger`: the events; one that was
    acknowledged twice counts once. Returns: scores as JSON has them: float32 values as floats.
    """
    import msgspec
    import pandas as pd
    import xgboost

    texts = {each.number: each.text for each in ledger}
    if not texts:
        return {}
    events = pd.DataFrame([msgspec.json.decode(text) for text in texts.values()])
    rows = events.join(pd.DataFrame.from_dict(customers, orient="index"), on="user")
    columns = {
        "amount": rows["amount"],
        "log_amount": rows["amount"].map(math.log1p),
        "age": rows["age"],
        "share": rows["amount"] / rows["limit"],
        "home": rows["country"] == "DE",
    }
    scores = model.predict(xgboost.DMatrix(pd.DataFrame(columns).astype("float32")))
    return dict(zip(texts, scores.tolist(), strict=True))


def check(evidence: Evidence, expected: Mapping[int, float], lease: float = 5.0) -> Verdict:
    """Judge a run.

    `evidence`: of the run; `expected`: score of each event in the ledger, by number; `lease`: lease time of the
    workers, in seconds.
    """
    return _Check(evidence, expected, lease).verdict


class _Check:
    def __init__(self, evidence: Evidence, expected: Mapping[int, float], lease: float) -> None:
        self._evidence, self._expected = evidence, expected
        self._most = round((lease + TAKEOVER_SECONDS + SEEN_SECONDS) * 1000)
        self._keys = {each.number: each.key for each in evidence.ledger}
        self._newest: dict[str, int] = {}
        for each in evidence.ledger:
            self._newest[each.key] = max(self._newest.get(each.key, -1), each.number)
        # Whatever the order of the acknowledgements was: what is scored is what the event map has.
        there = {key: evidence.events[key] for key in self._newest if key in evidence.events}
        returned = sum(number < self._newest[key] for key, number in there.items())
        gone = [key for key in self._newest if key not in there]
        self._newest |= there
        self.verdict = Verdict(
            acknowledged=len(self._keys),
            keys=len(self._newest),
            writes=len(evidence.writes),
            notices=len(evidence.notices),
            returned=returned,
            gaps=evidence.gaps,
            crashes=[each.note for each in evidence.incidents if each.kind == "crash"],
        )
        self._acknowledged = {each.number: each.at for each in evidence.ledger}
        self._lost({self._newest[key] for key in gone})
        self._wrong()
        self._late()
        doubled = _Causes(evidence, self._most).doubles(self.verdict)
        self._doubled_notices(doubled)
        self._takeovers()
        self._cannot("events of unknown fate", len(evidence.doubt))
        self._cannot("replaced events whose writes are not known", self.verdict.replaced_unseen)
        self._cannot("writes that the record lacks", evidence.gaps)

    def _cannot(self, what: str, count: int = 1) -> None:
        if count:
            self.verdict.unjudged[what] = self.verdict.unjudged.get(what, 0) + count

    def _lost(self, gone: set[int]) -> None:
        verdict, evidence = self.verdict, self._evidence
        written = {write.result.n for write in evidence.writes}
        written.update(notice.result.n for notice in evidence.notices)
        lost = set()
        for number, key in self._keys.items():
            if self._newest[key] == number:
                missing = key not in evidence.results
            else:
                missing = number not in written
                if missing and evidence.gaps:
                    verdict.replaced_unseen += 1
                    continue
            if missing:
                lost.add(number)
        dropped = self._dropped_by_one_alone(lost | gone)
        self._cannot("events that a member acknowledged when it was split off, and dropped", len(dropped))
        for numbers, finding in ((gone, verdict.gone), (lost, verdict.lost)):
            for number in sorted(numbers - dropped):
                finding.add(f"event {number} under `{self._keys[number]}`")

    def _dropped_by_one_alone(self, numbers: set[int]) -> set[int]:
        """Those that were acknowledged while a member may have been finding itself alone: that lasts for a moment."""
        dropped, missed = set[int](), HEARTBEAT_SECONDS * 1000
        for each in self._evidence.incidents:
            if each.kind in ("member-cut", "member-pause"):
                until = min(each.until, each.at + 2.5 * missed)
                # The last heartbeat came before the fault.
                begin = each.at + missed - HEARTBEAT_INTERVAL_SECONDS * 1000
                near = {n: at for n in numbers if begin <= (at := self._acknowledged[n]) <= until}
                first = min(near.values(), default=0)
                dropped.update(n for n, at in near.items() if at <= first + _MOMENT_MS)
        return dropped

    def _wrong(self) -> None:
        evidence, wrong = self._evidence, self.verdict.wrong
        for write in evidence.writes:
            if why := self._fault_of(write.key, write.result):
                wrong.add(f"`{write.key}` in the journal: {why}")
        for notice in evidence.notices:
            if why := self._fault_of(notice.key, notice.result):
                wrong.add(f"`{notice.key}` as notified: {why}")
        for key, result in evidence.results.items():
            if why := self._fault_of(key, result):
                wrong.add(f"`{key}` in the map: {why}")
            elif result.n not in evidence.doubt and result.n != (newest := self._newest.get(key, -1)):
                wrong.add(f"`{key}` in the map: of event {result.n}, but event {newest} is in the event map")

    def _fault_of(self, key: str, result: Result) -> str:
        """What is wrong with a result; empty if nothing is."""
        if result.n in self._evidence.doubt:
            return ""
        expected = self._expected.get(result.n)
        if expected is None:
            return f"event {result.n} was never acknowledged"
        if self._keys[result.n] != key:
            return f"event {result.n} is `{self._keys[result.n]}`"
        # Both are float32 values as float64: equal if and only if their bits are.
        return "" if result.score == expected else f"score {result.score!r} instead of {expected!r}"

    def _late(self) -> None:
        evidence = self._evidence
        if any(write.result.epoch is None for write in evidence.writes):
            self.verdict.late = None
            return
        late = self.verdict.late
        assert late is not None  # noqa: S101 -- for the type checker
        # What went with a member had positions that others have now: it is compared with nothing.
        standing = [write for write in evidence.writes if write.final]
        self._cannot("writes that went with a member", len(evidence.writes) - len(standing))
        by_partition = _by_partition(standing)
        marks = defaultdict(list)
        for mark in evidence.marks:
            marks[mark.partition].append(mark)
        for partition, writes in by_partition.items():
            fences = sorted(marks[partition], key=lambda mark: mark.position)
            highest, passed = -1, 0
            for write in writes:
                while passed < len(fences) and fences[passed].position < write.position:
                    highest = max(highest, fences[passed].epoch)
                    passed += 1
                epoch = write.result.epoch or 0
                if epoch < highest:
                    late.add(
                        f"partition {partition}, position {write.position}: epoch {epoch} after {highest} "
                        f"(event {write.result.n})"
                    )
                highest = max(highest, epoch)

    def _doubled_notices(self, doubled: Counter[tuple[str, int, int]]) -> None:
        """Compare what the listener had twice with what was written twice."""
        verdict, evidence = self.verdict, self._evidence
        seen: Counter[tuple[str, int, int]] = Counter()
        # One that the others take for dead drops what it alone has, as one that is dead does.
        deaths = [
            (each.at, each.until)
            for each in evidence.incidents
            if each.kind == "member-kill" or (each.worker is None and each.until - each.at > HEARTBEAT_SECONDS * 1000)
        ]
        for notice in evidence.notices:
            event = (notice.key, notice.result.n, notice.result.sequence)
            seen[event] += 1
            if seen[event] == 1:
                continue
            verdict.doubled_notices += 1
            if seen[event] - 1 <= doubled[event]:
                continue
            # A write that a member told of and took to its grave is made again.
            if not any(at - 1_000 <= notice.at <= until + _AFTERMATH_MS for at, until in deaths):
                verdict.unexplained_notices.add(f"event {notice.result.n} under `{notice.key}`")

    def _takeovers(self) -> None:
        """How long it took until the last partition of a killed worker had another owner."""
        marks, verdict = self._evidence.marks, self.verdict
        last = max((each.at for each in self._evidence.ledger), default=0)
        for incident in self._evidence.incidents:
            if incident.kind not in ("worker-kill", "crash"):
                continue
            owned: dict[int, Mark] = {}
            longest = None
            for mark in marks:
                if mark.at <= incident.at:
                    owned[mark.partition] = mark
                    continue
                before = owned.get(mark.partition)
                if before is not None and pid_of(before.owner) == incident.pid and mark.owner != before.owner:
                    longest = max(longest or 0, mark.at - incident.at)
                    del owned[mark.partition]
            if longest is not None:
                verdict.takeover_ms[incident.number] = max(longest, verdict.takeover_ms.get(incident.number, 0))
            never = any(pid_of(mark.owner) == incident.pid for mark in owned.values())
            if longest is None and not never:
                self._cannot("takeovers of a worker that held nothing")
                continue
            most = self._patience(incident)
            if most > _CHAIN_MS:
                self._cannot("takeovers beside faults that followed one another for longer than a minute")
            elif never and incident.at + most > last:
                self._cannot("takeovers at the end")
            else:
                verdict.takeovers_judged += 1
                verdict.takeovers_beside += most > self._most
                if never:
                    verdict.slow.add(f"fault {incident.number}: partitions that nobody took")
                elif longest is not None and longest > most:
                    verdict.slow.add(
                        f"fault {incident.number}: {longest / 1000:.1f} s, {most / 1000:.0f} s at most may be"
                    )

    def _patience(self, incident: Incident) -> int:
        """How long a takeover may take: whoever is about to take over may be hit as well, or leave.

        Of a worker that is killed or leaves, others miss heartbeat and mark as soon as the first one's: from then on.
        One that was paused or cut off is back in the group when that is over, and watches what it is to take anew.
        """
        end = incident.at + self._most
        for each in sorted(self._evidence.incidents, key=lambda each: each.at):
            if each is not incident and (over := _over(each)) >= incident.at and each.at <= end:
                end = max(end, over + self._most)
        return end - incident.at


def _over(incident: Incident) -> int:
    """From when on a fault holds up no takeover beside it that begins anew."""
    if incident.worker is None:
        return incident.until + _BACK_MS  # a member that is back is still given its partitions
    # Who comes in the place of one that has gone watches what others watch already: they do not wait for it.
    return incident.at if incident.kind in _GONE else incident.until


class _Causes:
    """Finds for each event that was written twice whose fault it was."""

    def __init__(self, evidence: Evidence, aftermath: int) -> None:
        self._evidence, self._aftermath = evidence, aftermath
        self._owners: dict[tuple[int, int], int] = {}
        self._marks: dict[int, list[Mark]] = defaultdict(list)
        for mark in evidence.marks:
            self._marks[mark.partition].append(mark)
            if (pid := pid_of(mark.owner)) is not None:
                self._owners[mark.partition, mark.epoch] = pid
        self._found: dict[tuple[str, int | None], Doubles] = {}

    def doubles(self, verdict: Verdict) -> Counter[tuple[str, int, int]]:
        """Count them into the verdict; returns how often too many each event was written, by key, number, sequence."""
        counts: Counter[tuple[str, int, int]] = Counter()
        for writes in _by_partition(self._evidence.writes).values():
            earlier: dict[tuple[str, int, int], Write] = {}
            newest: dict[int, Write] = {}
            for write in writes:
                result = write.result
                event = (write.key, result.n, result.sequence)
                # An event that was put twice has two sequences, and a result for each. One that was found in the map
                # has none: it should not have had a result.
                before = newest.get(result.n) if result.sequence < 0 else earlier.get(event)
                verdict.rescued += result.sequence < 0
                earlier[event] = newest[result.n] = write
                if before is not None:
                    counts[event] += 1
                    self._blame(before, write)
        verdict.doubles = sorted(self._found.values(), key=lambda each: (each.cause, each.incident or 0))
        return counts

    def _blame(self, before: Write, write: Write) -> None:
        if before.final and not write.final:
            before, write = write, before  # what is gone was there first, wherever it stood
        stood = self._stood(before, write)
        incident, cause = self._cause(before, write, stood=stood)
        place = (cause, None if incident is None else incident.number)
        doubles = self._found.setdefault(place, Doubles(*place))
        doubles.count += 1
        if incident is not None and incident.worker is None and not before.final:
            # Gone with the member: only what nobody had acknowledged can be.
            stood = before.result.scored_at < incident.at - _UNDER_WAY_MS
        doubles.bound += cause in UNORDERLY and not stood

    def _stood(self, before: Write, write: Write) -> bool:
        """Whether the first write was seen to stand when whoever made the second one looked, or earlier."""
        epoch, again = before.result.epoch or 0, write.result.epoch or 0
        return any(
            mark.position >= before.position
            and (mark.epoch <= epoch if again > epoch else mark.at <= write.result.scored_at - _LOOK_MS)
            for mark in self._marks[before.partition]
        )

    def _cause(self, before: Write, write: Write, *, stood: bool) -> tuple[Incident | None, str]:
        first, second = before.result, write.result
        epochs = [result.epoch if result.epoch is not None else -1 for result in (first, second)]
        # Of two owners, something has happened to the earlier one, whichever of them was the first to write.
        owner = self._owners.get((write.partition, min(epochs)))
        moved = epochs[0] != epochs[1]
        until = second.scored_at
        near = [
            each
            for each in self._evidence.incidents
            if each.at - _UNDER_WAY_MS <= until
            and first.scored_at <= each.until + (_AFTERMATH_MS if each.worker is None else self._aftermath)
            and each.at >= 0
        ]
        # First what was done to the owner itself, then what was done to all; but what stood, only a member takes away.
        own = [each for each in near if each.pid is not None and each.pid == owner]
        if not moved:
            own = [each for each in own if each.kind != "leave"]
        members = [each for each in near if each.worker is None]
        strangers = [each for each in near if owner is None and each.pid is not None]
        for candidates in (members, own, strangers) if stood else (own, members, strangers):
            if candidates:
                # The last one that began before the second write.
                incident = max(candidates, key=lambda each: each.at)
                return incident, incident.kind
        return None, "rebalance" if moved else "unexplained"


def _by_partition(writes: Sequence[Write]) -> dict[int, list[Write]]:
    """Writes of each partition, in their order."""
    found: dict[int, list[Write]] = defaultdict(list)
    for write in writes:
        found[write.partition].append(write)
    return found
