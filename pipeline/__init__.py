"""Gridscore: machine-learning inference on live data inside an ordinary Hazelcast cluster.

What a program needs is here:

* `connect` to a cluster, and through the `Client` put events, push models, submit jobs, and iterate over results;
* `load_job` and `offline_matrix`, to train on exactly the features that the stream will see;
* `verify_webhook`, for programs that receive results by a web hook;
* `Cluster`, to start real members from Python;
* `GridscoreError`, the root of every error that a person can act on.
"""

from __future__ import annotations

import sys
import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

if sys.version_info < (3, 12):
    # The Hazelcast client imports it, and its warning would fail the tests of users who make warnings errors.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import asyncore  # noqa: F401

if TYPE_CHECKING:
    from pipeline.client import Client, connect
    from pipeline.errors import EventRejectedError, GridscoreError, NoResultError
    from pipeline.features import OfflineMatrix, offline_matrix
    from pipeline.grid import GridSettings
    from pipeline.grid.member import Cluster
    from pipeline.job import Job, load_job
    from pipeline.results import Result, ResultStream
    from pipeline.sinks.signature import verify_webhook
    from pipeline.worker import Worker

_HOMES = {
    "Client": "pipeline.client",
    "Cluster": "pipeline.grid.member",
    "EventRejectedError": "pipeline.errors",
    "GridSettings": "pipeline.grid",
    "GridscoreError": "pipeline.errors",
    "Job": "pipeline.job",
    "NoResultError": "pipeline.errors",
    "OfflineMatrix": "pipeline.features",
    "Result": "pipeline.results",
    "ResultStream": "pipeline.results",
    "Worker": "pipeline.worker",
    "connect": "pipeline.client",
    "load_job": "pipeline.job",
    "offline_matrix": "pipeline.features",
    "verify_webhook": "pipeline.sinks.signature",
}

__all__ = [
    "Client",
    "Cluster",
    "EventRejectedError",
    "GridSettings",
    "GridscoreError",
    "Job",
    "NoResultError",
    "OfflineMatrix",
    "Result",
    "ResultStream",
    "Worker",
    "connect",
    "load_job",
    "offline_matrix",
    "verify_webhook",
]


def __getattr__(name: str) -> Any:
    # Imported when asked for: `gridscore --help` should not wait for XGBoost and the client.
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
