"""What the windows of an entity hold now, read from the grid."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gridscore.errors import JobError
from gridscore.features.windows import Windows, texts_of
from gridscore.grid.entries import values_of
from gridscore.grid.writer import MapWriter, partition_of
from gridscore.scoring.window_messages import entity_key
from gridscore.scoring.window_states import keys_of, map_of, parts_of, read_entry

if TYPE_CHECKING:
    from gridscore.grid import Grid
    from gridscore.job import JobRecord


@dataclass(frozen=True, slots=True)
class EntityState:
    """The state of an entity; of several windows in which there is one of that name, of all of them together."""

    map: str  # that has it
    sequence: int  # in the event journal, of the newest event that was added; -1 if that is not known
    newest: float  # time of its newest event, in seconds since 1970
    late: int  # events that were too late to count
    bytes: int  # that the state takes
    values: dict[str, float | None]  # by call, what an event at that time would see; None where that is missing


async def state_of(grid: Grid, record: JobRecord, entity: str) -> EntityState:
    """The state of an entity of a job.

    Raises JobError if the job has no windows, or the entity no state, or one that cannot be used.
    """
    job = record.job
    if not job.used_windows:
        raise JobError(f"The job `{job.name}` has no windows.")
    name, windows, texts = map_of(job.name), Windows(job), texts_of(job)
    writer, parts, found, is_there = MapWriter(grid, name), parts_of(record, windows), [], False
    for number, layout in enumerate(windows.layouts):
        keys = [entity_key(layout.name, entity)] if job.routes_windows else keys_of(job, entity, writer.serialize_key)
        for key in keys:
            there = await values_of(grid, name, partition_of(key, grid.partition_count), [key])
            is_there = is_there or bool(there)
            if (entry := read_entry(there.get(key, b""), parts, windows, number)) is None:
                continue
            head, seen = windows.look(number, entry.state)
            present = [None if math.isnan(value) else value for value in seen]
            values = {texts[output]: value for output, value in zip(layout.outputs, present, strict=True)}
            found.append(EntityState(name, head.sequence, head.newest, head.late, len(entry.state), values))
    if found:
        # Of a whole number, a history is loaded under both forms of the key, and the stream goes on with one of them.
        found.sort(key=lambda each: (each.newest, each.sequence))
        return EntityState(
            name,
            max(each.sequence for each in found),
            max(each.newest for each in found),
            sum(each.late for each in found),
            sum(each.bytes for each in found),
            {text: value for each in found for text, value in each.values.items()},
        )
    if is_there:
        raise JobError(
            f"The state of `{entity}` in the map `{name}` is not one of the job's windows as they are now.",
            "It begins anew with the entity's next event.",
        )
    raise JobError(
        f"The map `{name}` has no state of `{entity}`.",
        "An entity has one once an event of it is scored, until it has had none for as long as its windows look back.",
    )
