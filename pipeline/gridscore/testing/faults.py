"""Faults: what is to go wrong with which requests."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

Outcome = Literal["timeout", "indeterminate", "unacknowledged", "disconnect", "silence", "duplicate", "delay", "move"]

# Outcomes with an answer: such a request takes effect, whatever the fault says.
ANSWERED = frozenset(("unacknowledged", "duplicate", "delay", "move"))


@dataclass(slots=True)
class Fault:
    """What is to go wrong with the next requests that match.

    Attributes:
        outcome: What the client sees:
            `timeout`: OperationTimeoutError;
            `indeterminate`: IndeterminateOperationStateError;
            `unacknowledged`: an answer whose backup never confirms, so the client gives up on it after its time-out;
            `disconnect`: the connection breaks instead of an answer;
            `silence`: no answer, as long as the connection lives;
            `duplicate`: the answer, twice;
            `delay`: the answer, but only after the partition has stood still for `seconds`;
            `move`: the answer, but the partition moves for `seconds`: it can be read meanwhile, and each write is tried
                again every half of a second, on its own, so that what comes later may be done before it.
        applied: Whether the request takes effect before that; one that is answered always does.
        request: Which requests, a pattern of their names, such as `Map.PutAll`; `messages.NAMES` lists them.
        map: On which maps, a pattern.
        partition: On which partition; any if None.
        client: Of which client, a pattern.
        times: How many requests; the fault is over then.
        seconds: For `delay` and `move`.
    """

    outcome: Outcome
    applied: bool = True
    request: str = "Map.*"
    map: str = "*"
    partition: int | None = None
    client: str = "*"
    times: int = 1
    seconds: float = 0.0

    def matches(self, request: str, map_name: str, partition: int, client: str) -> bool:
        """Whether it is about that request."""
        return (
            self.times > 0
            and fnmatchcase(request, self.request)
            and fnmatchcase(map_name, self.map)
            and self.partition in (None, partition)
            and fnmatchcase(client, self.client)
        )
