"""Jobs of the cluster's own engine, which SQL starts: what runs, and why it does not.

SQL lists the names of jobs only, and forgets those that have failed. Management Center asks by a request of the client
protocol that open-source members answer to any client; it only reads.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, NamedTuple

from hazelcast.errors import HazelcastError
from hazelcast.protocol.builtin import CodecUtil, ListMultiFrameCodec, StringCodec
from hazelcast.protocol.client_message import (
    REQUEST_HEADER_SIZE,
    InboundMessage,
    OutboundMessage,
    create_initial_buffer,
)

from pipeline.errors import GridError
from pipeline.grid import transport

if TYPE_CHECKING:
    from pipeline.grid.connection import Grid

_GET_JOBS = 0xFE0F00
_FIXED = struct.Struct("<?qqiqq")
_STATES = ("not running", "starting", "running", "suspended", "suspended", "completing", "failed", "completed")


class EngineJob(NamedTuple):
    """A job of the cluster's engine.

    Attributes:
        id: Of the job.
        name: That it was given, or its id.
        state: `not running`, `starting`, `running`, `suspended`, `completing`, `failed`, `completed`, or `dropped` by
            somebody.
        submitted_at: Milliseconds of the cluster's clock.
        failure: Why it failed, with a stack trace, or why it is suspended; empty if it is well.
    """

    id: int
    name: str
    state: str
    submitted_at: int
    failure: str

    @property
    def has_ended(self) -> bool:
        """Whether it will never run again."""
        return self.state in {"failed", "completed", "dropped"}


async def engine_jobs(grid: Grid) -> list[EngineJob]:
    """The jobs that the engine has, and those that it has ended and still remembers; the newest first.

    Raises:
        GridError: No member can be asked.
        HazelcastError: The member refuses, or its engine is disabled.
    """
    connection = next(iter(transport.member_connections(grid.client).values()), None)
    if connection is None:
        raise GridError("No member is connected.")
    message = OutboundMessage(create_initial_buffer(REQUEST_HEADER_SIZE, _GET_JOBS, True), True)
    found: list[EngineJob] = await transport.ask(grid.client, message, connection, _decode_jobs)
    return sorted(found, key=lambda job: -job.submitted_at)


async def execute(grid: Grid, statement: str) -> list[list[Any]]:
    """Execute a statement of SQL; its rows, if it has any.

    Raises:
        HazelcastError: The cluster refuses it, or does not answer.
    """
    result = await grid.client.sql.execute(statement)
    try:
        if not result.is_row_set():
            return []
        columns = range(result.get_row_metadata().column_count)
        return [[row.get_object_with_index(column) for column in columns] async for row in result]
    finally:
        await result.close()


def identifier(name: str) -> str:
    """A name as SQL takes it, whatever it holds."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A text as SQL takes it, whatever it holds."""
    return "'" + text.replace("'", "''") + "'"


def _decode_jobs(message: InboundMessage) -> list[EngineJob]:
    message.next_frame()
    jobs: list[EngineJob] = ListMultiFrameCodec.decode(message, _decode_job)
    return jobs


def _decode_job(message: InboundMessage) -> EngineJob:
    message.next_frame()  # which begins it
    fixed = message.next_frame().buf
    _light, number, _execution, state, submitted, _completed = _FIXED.unpack_from(fixed)
    dropped = len(fixed) > _FIXED.size and bool(fixed[_FIXED.size])
    name = StringCodec.decode(message)
    failure = CodecUtil.decode_nullable(message, StringCodec.decode)
    CodecUtil.decode_nullable(message, _pass_over)  # its query
    suspended = None
    if not CodecUtil.next_frame_is_data_structure_end_frame(message):
        suspended = CodecUtil.decode_nullable(message, StringCodec.decode)
    CodecUtil.fast_forward_to_end_frame(message)
    if not 0 <= state < len(_STATES):
        raise HazelcastError(f"a job in state {state}, which is unknown")
    if dropped:  # which the engine has as a failure
        return EngineJob(number, name, "dropped", submitted, "")
    return EngineJob(number, name, _STATES[state], submitted, failure or suspended or "")


def _pass_over(message: InboundMessage) -> None:
    message.next_frame()  # which begins it
    CodecUtil.fast_forward_to_end_frame(message)
