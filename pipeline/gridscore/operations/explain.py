"""Why a result is what it is: its event, lookups and features, and what each feature adds to the score.

Contributions are SHAP values (Lundberg and others, "Consistent Individualized Feature Attribution for Tree Ensembles",
2018; see `LoadedModel.contributions`). With the base value they sum to the margin, which is the score before its last
function, such as the logistic.
"""

from __future__ import annotations

import math
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from gridscore.errors import UsageError
from gridscore.grid.copies import payload
from gridscore.grid.entries import value_of
from gridscore.grid.journal import Journal
from gridscore.grid.writer import partition_of
from gridscore.group.reader import Cursor
from gridscore.job import Jobs
from gridscore.operations.parity import same
from gridscore.operations.preview import Preview, data_of
from gridscore.operations.subject import subject_of
from gridscore.scoring.rehearsal import page_of_texts
from gridscore.scoring.window_states import HistoryStates

if TYPE_CHECKING:
    from gridscore.grid import Grid
    from gridscore.job import JobRecord
    from gridscore.operations.preview import Passed
    from gridscore.operations.subject import Subject


@dataclass(slots=True)
class Explanation:
    """Why a result is what it is."""

    result: dict[str, Any]
    event: dict[str, Any] | None = None  # its event; None if it is not there any more
    # By name, the `key` that was asked for, and the fields of the `entry`; as they are now.
    lookups: dict[str, Any] = field(default_factory=dict)
    features: dict[str, float | None] = field(default_factory=dict)  # what was scored; None where the value is missing
    contributions: dict[str, float] = field(default_factory=dict)  # what each feature adds to the margin
    base: float | None = None  # the margin without any of them
    margin: float | None = None  # their sum
    output: str | int | None = None  # the class that is explained, of a model with several; None of others
    is_exact: bool = False  # whether these features give the result's own score, to the bit
    notes: list[str] = field(default_factory=list)  # what is not known, or is otherwise now

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


async def explain(grid: Grid, job: str, key: str, *, output: str | None = None) -> Explanation:
    """Explain the result that a job has for a key now.

    Args:
        output: Which class to explain, of a model with several; by default the one that the result names.

    Raises:
        JobError: There is no such job.
        UsageError: There is no result, or no such class.
        ModelError: The version that made the result was deleted.
        TableError, GridError: A lookup cannot be read.
    """
    record = await Jobs(grid).get(job)
    data, result = await _result(grid, record, key)

    made = Explanation(result)
    async with subject_of(lambda: nullcontext(grid), job, [str(result["version"])], None) as subject:
        passed = await _pass(grid, record, subject, key, data, made)
        _features(subject, passed, made)
        if made.features:
            _contributions(subject, passed, made, output)
    return made


async def _result(grid: Grid, record: JobRecord, key: str) -> tuple[bytes, dict[str, Any]]:
    map_name = record.job.results
    for data in data_of(grid, key):
        if (value := await value_of(grid, map_name, data)) is not None:
            with suppress(msgspec.DecodeError):
                result = msgspec.json.decode(payload(value), type=dict[str, Any])
                if isinstance(result.get("version"), int) and isinstance(result.get("sequence"), int):
                    return data, result
            raise UsageError(f"What `{map_name}` has for the key `{key}` is not a result of a job.")
    raise UsageError(
        f"`{map_name}` has no result for the key `{key}`.",
        f"`gridscore dead-letters list {record.name}` shows events that could not be scored, "
        f"`gridscore audit {record.name}` those without result.",
    )


async def _pass(
    grid: Grid, record: JobRecord, subject: Subject, key: str, data: bytes, made: Explanation
) -> Passed | None:
    """The result's event, and what the job makes of it today."""
    job, result = subject.job, made.result
    partition, sequence = partition_of(data, grid.partition_count), result["sequence"]
    text: bytes | None = None
    page = await Journal(grid, job.events).held(partition, sequence, 1)
    if page is not None and page.sequences[:1] == [sequence] and page.keys[:1] == [data] and not page.foreign:
        text = page.values[0]
    elif (value := await value_of(grid, job.events, data)) is not None:
        text = payload(value)
        made.notes.append("The journal does not hold the event any more: this is the newest with its key.")
    if not text:
        made.notes.append("The event is not there any more.")
        return None
    if result.get("revision") not in (None, record.revision):
        made.notes.append(
            f"Revision {result['revision']} of the job made the result; the features are those of revision "
            f"{record.revision}."
        )
    states = HistoryStates(job) if job.used_windows else None
    preview = Preview(job, subject.sides[0].model, subject.given, states, record.revision)
    passed = await preview.look(page_of_texts([text], sequence), Cursor(partition, sequence), key)
    made.event, made.lookups = passed.decoded, passed.lookups
    return passed


def _features(subject: Subject, passed: Passed | None, made: Explanation) -> None:
    names = subject.sides[0].model.version.features
    served = made.result.get("features")
    if isinstance(served, dict) and set(names) <= set(served):
        made.features = {name: None if served[name] is None else float(served[name]) for name in names}
    elif subject.job.used_windows:
        made.notes.append(
            "What its windows held then is not known, so neither are its features. `result: {features: all}` in the "
            "job file keeps them with each result."
        )
    elif passed is not None and passed.features:
        made.features = {name: passed.features[name] for name in names}
    elif passed is not None and passed.rejected is not None:
        made.notes.append(f"The event is refused now: {passed.rejected['error']}")


def _contributions(subject: Subject, passed: Passed | None, made: Explanation, output: str | None) -> None:
    model, names, result = subject.sides[0].model, list(made.features), made.result
    row = np.array([[math.nan if v is None else v for v in made.features.values()]], np.float32)
    margins = None
    if subject.job.margin is not None:
        if passed is None or passed.margin is None:
            made.notes.append("The margin that its score begins with is not known.")
            return
        margins = np.array([passed.margin], np.float32)
    found = model.contributions(row, margins)[0]
    scores = model.predict(row, margins)[0].tolist()
    number = 0
    if len(found) > 1:
        classes: list[str | int] = list(subject.job.classes or range(len(found)))
        wanted = output if output is not None else result.get("label")
        called = [str(each) for each in classes]
        if wanted is None:
            number = int(np.argmax(scores)) if isinstance(scores, list) else int(scores)  # a class itself
        elif str(wanted) in called:
            number = called.index(str(wanted))
        else:
            raise UsageError(f"The model has no class `{wanted}`.", f"It has {', '.join(called)}.")
        made.output = classes[number]
    elif output is not None:
        raise UsageError("The model has one output: there are no classes to choose from.", "Leave out --class.")
    made.contributions = dict(zip(names, found[number][:-1].tolist(), strict=True))
    made.base = float(found[number][-1])
    made.margin = float(found[number].sum(dtype=np.float64))
    made.is_exact = same(scores, result.get("score"))
    if not made.is_exact:
        made.notes.append(
            f"What is there now gives the score {scores}, and not {result.get('score')}: a lookup, the job or the "
            "event has changed since. The contributions are to the score of now."
        )
