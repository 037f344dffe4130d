"""What gates say of a version: each passes or fails by a figure that is told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gridscore.errors import GridscoreError
from gridscore.models.metrics import HIGHER_IS_BETTER, intervals, measure, microseconds_a_row, psi
from gridscore.models.sample import golden_inputs

if TYPE_CHECKING:
    from collections.abc import Callable

    from gridscore.job.gates import ChampionGate, Gates, MetricGate
    from gridscore.models.certificates import Certificate
    from gridscore.models.loaded import LoadedModel
    from gridscore.models.sample import Rows, Sample

NO_SAMPLE = "the model has no labelled sample; `gridscore model sample NAME MATRIX --label COLUMN` stores one"


class Verdict(NamedTuple):
    """What a gate says, and why."""

    gate: str
    passed: bool
    text: str

    def to_json(self) -> dict[str, Any]:
        return self._asdict()


def judge(
    gates: Gates,
    model: LoadedModel,
    # That scores now, to compare with; why it cannot be used; or None without a champion.
    champion: LoadedModel | str | None,
    sample: Sample | str | None,  # labelled rows; why they cannot be used; None if there are none
    events: Rows | str,  # the latest, or why there are none
    certificate: Certificate | None = None,  # of the parity of this version and this job; None if there is none
) -> list[Verdict]:
    """What each gate of a job says of a version. Takes a while: not for the event loop."""
    checks: dict[str, Callable[[], tuple[bool, str]]] = {}
    for number, row in enumerate(gates.golden, 1):
        checks[f"golden row {number}"] = lambda row=row: _golden(row, model)  # type: ignore[misc]
    if (metric := gates.metric) is not None:
        checks["metric"] = lambda: _metric(metric, model, sample)
    if (worse := gates.champion) is not None:
        checks["champion"] = lambda: _champion(worse, model, champion, sample)
    if (latency := gates.latency) is not None:
        checks["latency"] = lambda: _latency(latency.us_per_row, model)
    if (shift := gates.shift) is not None:
        checks["shift"] = lambda: _shift(shift.psi, model, champion, events)
    if (parity := gates.parity) is not None:
        checks["parity"] = lambda: _parity(parity.events, certificate)
    return [_verdict(name, check) for name, check in checks.items()]


def _verdict(name: str, check: Callable[[], tuple[bool, str]]) -> Verdict:
    try:
        return Verdict(name, *check())
    except GridscoreError as error:  # what cannot be judged has not passed
        return Verdict(name, False, f"cannot be judged: {' '.join(error.message.split())}")


def _golden(row: Any, model: LoadedModel) -> tuple[bool, str]:
    margins = None if row.margin is None else np.array([row.margin], np.float32)
    scores = model.predict(golden_inputs([row.features], model.version), margins)
    if scores.ndim != 1:
        return False, "cannot be judged: the model gives several scores an event"
    score, (low, high) = float(scores[0]), row.bounds
    if low <= score <= high:
        return True, f"the score is {score:.6g}"
    bound, word, by = (low, "below", low - score) if score < low else (high, "above", score - high)
    if np.isnan(score):
        return False, "the score is not a number"
    return False, f"the score is {score:.6g}, {word} {bound:.6g} by {by:.3g}"


def _metric(gate: MetricGate, model: LoadedModel, sample: Sample | str | None) -> tuple[bool, str]:
    if isinstance(sample, str):
        return False, f"cannot be judged: {sample}"
    if sample is None or sample.labels is None:
        return False, NO_SAMPLE
    (found,), _ = intervals(
        [measure(gate.name, sample.labels, model.predict(*sample.inputs(model.version)))], len(sample)
    )
    said = f"{gate.name} is {found} on {len(sample):,} rows"
    if gate.at_least is not None:
        passed, missed = found.low >= gate.at_least, f"its lower end is below {gate.at_least:g} by"
        by = gate.at_least - found.low
    else:
        passed, missed = found.high <= gate.at_most, f"its upper end is above {gate.at_most:g} by"  # type: ignore[operator]
        by = found.high - gate.at_most  # type: ignore[operator]
    return passed, said if passed else f"{said}: {missed} {by:.3g}"


def _champion(
    gate: ChampionGate, model: LoadedModel, champion: LoadedModel | str | None, sample: Sample | str | None
) -> tuple[bool, str]:
    if champion is None:
        return True, "nothing scores now that it could be worse than"
    if isinstance(champion, str):
        return False, f"cannot be judged: {champion}"
    if isinstance(sample, str):
        return False, f"cannot be judged: {sample}"
    if sample is None or sample.labels is None:
        return False, NO_SAMPLE
    scores = (each.predict(*sample.inputs(each.version)) for each in (model, champion))
    measures = [measure(gate.name, sample.labels, each) for each in scores]
    (ours, theirs), less = intervals(measures, len(sample))
    assert less is not None  # noqa: S101 -- there are two
    # How much worse, and at worst.
    worse, worst = (less.value, less.high) if gate.name in HIGHER_IS_BETTER else (-less.value, -less.low)
    said = (
        f"{gate.name} is {ours.value:.4g}, that of version {champion.version.version} {theirs.value:.4g}: worse by "
        f"{worse:.3g}, at most {worst:.3g} (95 %)"
    )
    passed = worst <= gate.worse_by
    return passed, said if passed else f"{said}, which is {worst - gate.worse_by:.3g} more than {gate.worse_by:g}"


def _latency(most: float, model: LoadedModel) -> tuple[bool, str]:
    took = microseconds_a_row(model)
    said = f"a row takes {took:,.4g} µs"
    return took <= most, said if took <= most else f"{said}, {took - most:,.4g} more than {most:,g}"


def _shift(most: float, model: LoadedModel, champion: LoadedModel | str | None, events: Rows | str) -> tuple[bool, str]:
    if champion is None:
        return True, "nothing scores now whose scores could be compared"
    if isinstance(champion, str) or isinstance(events, str):
        return False, f"cannot be judged: {champion if isinstance(champion, str) else events}"
    ours, theirs = (each.predict(*events.inputs(each.version)) for each in (model, champion))
    if ours.shape != theirs.shape:
        return False, "cannot be judged: the two versions do not give as many scores an event"
    found = psi(theirs, ours)
    said = f"the PSI of {len(ours):,} events is {found:,.4g} against version {champion.version.version}"
    return found <= most, said if found <= most else f"{said}, {found - most:,.4g} more than {most:g}"


def _parity(least: int, certificate: Certificate | None) -> tuple[bool, str]:
    if certificate is None:
        return (
            False,
            "there is no certificate: push the version without an alias, then `gridscore parity JOB --model N`",
        )
    said = f"{certificate.text} ({certificate.at[:16]}, revision {certificate.revision} of the job)"
    if certificate.different:
        return False, f"{said}: {certificate.different:,} differ"
    if certificate.equal < least:
        return False, f"{said}: {least - certificate.equal:,} less than {least:,}"
    return True, said
