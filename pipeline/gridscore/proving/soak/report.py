"""What a soak has shown: the figures, as JSON and as rows of a table."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from gridscore.proving.soak.plan import KINDS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from gridscore.proving.soak.checker import Verdict
    from gridscore.proving.soak.evidence import Incident
    from gridscore.proving.soak.plan import Plan
    from gridscore.proving.soak.producer import Progress


@dataclass(slots=True)
class Report:
    """A run and its verdict."""

    job: str  # name of the job, unlike that of any other run
    seed: int  # from which it can be repeated
    plan: Plan  # what was to be done
    verdict: Verdict  # what came out
    incidents: Sequence[Incident]  # what was done
    producer: Progress  # the producer's own figures
    load_seconds: float  # how long events were put
    settled_in: float  # seconds from the last event to the last result
    seconds: float  # of the whole run
    folder: Path | None  # where logs and records are; None if they were removed

    @property
    def done(self) -> dict[str, int]:
        """How many faults of each kind were done."""
        numbers = {incident.number for incident in self.incidents}
        counts = Counter(fault.kind for fault in self.plan.faults if fault.number in numbers)
        return {kind: counts[kind] for kind in KINDS}

    @property
    def doubles(self) -> dict[str, int]:
        """Events written twice, by the kind of fault."""
        found: Counter[str] = Counter()
        for each in self.verdict.doubles:
            found[each.cause] += each.count
        return dict(sorted(found.items()))

    def rows(self) -> list[tuple[str, str]]:
        """The figures for people."""
        verdict = self.verdict
        takeovers = list(verdict.takeover_ms.values())
        rate = verdict.acknowledged / self.load_seconds if self.load_seconds else 0
        late = "not known: results do not say their epoch" if verdict.late is None else f"{verdict.late.count:,}"
        rows = [
            ("events acknowledged", f"{verdict.acknowledged:,} ({verdict.keys:,} keys) in {self.load_seconds:.0f} s"),
            ("rate", f"{rate:,.0f} events/s; longest acknowledgement {self.producer.longest:.1f} s"),
            ("puts made again", f"{self.producer.retries:,}"),
            ("faults", ", ".join(f"{count} {kind}" for kind, count in self.done.items() if count) or "none"),
            ("last results after", f"{self.settled_in:.1f} s"),
            ("writes, notifications", f"{verdict.writes:,}, {verdict.notices:,}"),
            ("lost", f"{verdict.lost.count:,}"),
            ("wrong", f"{verdict.wrong.count:,}"),
            ("written by an expired owner", late),
            ("found by a rescan", f"{verdict.rescued:,}"),
            ("written twice", ", ".join(f"{n:,} by {cause}" for cause, n in self.doubles.items()) or "0"),
            ("notified twice", f"{verdict.doubled_notices:,}"),
            (
                "taken over too late",
                f"{verdict.slow.count:,} of {verdict.takeovers_judged:,}"
                + (f", {verdict.takeovers_beside:,} of them beside other faults" if verdict.takeovers_beside else ""),
            ),
            ("not judged", ", ".join(f"{count:,} {what}" for what, count in verdict.unjudged.items()) or "nothing"),
        ]
        if takeovers:
            rows.append(("longest takeover after a kill", f"{max(takeovers) / 1000:.1f} s"))
        if verdict.gone.count:
            rows.append(("gone from the cluster", f"{verdict.gone.count:,}"))
        return rows

    def examples(self) -> list[str]:
        """Some cases of what is wrong."""
        verdict = self.verdict
        findings = {
            "lost": verdict.lost,
            "gone": verdict.gone,
            "wrong": verdict.wrong,
            "late": verdict.late,
            "notified twice": verdict.unexplained_notices,
            "slow": verdict.slow,
        }
        return [f"{what}: {example}" for what, finding in findings.items() if finding for example in finding.examples]

    def to_json(self) -> dict[str, Any]:
        return {
            "job": self.job,
            "seed": self.seed,
            "passed": self.verdict.is_good,
            "problems": self.verdict.problems,
            "load_seconds": round(self.load_seconds, 1),
            "seconds": round(self.seconds, 1),
            "events_per_s": round(self.verdict.acknowledged / self.load_seconds) if self.load_seconds else 0,
            "settled_in": self.settled_in,
            "faults_done": self.done,
            "doubles_by_cause": self.doubles,
            "verdict": asdict(self.verdict),
            "producer": {**asdict(self.producer), "doubt": len(self.producer.doubt)},
            "plan": self.plan.to_json(),
            "folder": None if self.folder is None else str(self.folder),
        }
