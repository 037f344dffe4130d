"""The worker room: the scoring loop, leases, offsets, dead letters.

`Worker` finds submitted jobs and scores for them; `JobRunner` is the loop of one job, the way of a batch from the
journal to the result map.
"""

from gridscore.scoring.runner import JobRunner
from gridscore.scoring.worker import Worker

__all__ = ["JobRunner", "Worker"]
