"""The scoring room: the loop of a job, and the worker that runs such loops.

`Worker` finds submitted jobs and scores for them; `JobRunner` is the loop of one job, the way of a batch from the
journal to the result map.
"""

from gridscore.scoring.runner import JobRunner
from gridscore.scoring.worker import Worker

__all__ = ["JobRunner", "Worker"]
