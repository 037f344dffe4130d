"""The scoring room: `Worker` finds submitted jobs and scores for them; `JobRunner` is the loop of one job."""

from gridscore.scoring.runner import JobRunner
from gridscore.scoring.worker import Worker

__all__ = ["JobRunner", "Worker"]
