"""Assignment: how many partitions a worker of a group should hold, and which it should give back.

Every worker decides for itself, by the same rule and what it sees. With `n` workers and `P` partitions each holds
`P / n`, rounded down or up: up for those that hold more already, so that nothing moves without need. Adding a worker
moves its share to it, removing one moves its share to the others, and nothing else moves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


def quota(worker: str, held: Mapping[str, int], partitions: int) -> int:
    """How many partitions a worker should hold.

    Args:
        worker: Which.
        held: Partitions that each living worker of the group holds, this one among them.
        partitions: How many there are.
    """
    floor, more = divmod(partitions, len(held))
    above = sorted(name for name, count in held.items() if count > floor)
    ahead = above.index(worker) if worker in above else len(above)
    return floor + (ahead < more)
