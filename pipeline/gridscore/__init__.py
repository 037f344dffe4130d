"""Gridscore: machine-learning inference on live data inside an ordinary Hazelcast cluster.

What a program needs is here:

* `connect` to a cluster, and put events, push models, submit jobs, and iterate over results: `async with connect()`
  gives a `Client`, `with connect()` a `BlockingClient` for scripts and notebooks;
* `load_job` and `offline_matrix`, to train on exactly the features that the stream will see; `allow_python`, if some of
  them are Python functions;
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
    from gridscore.client import Client, connect
    from gridscore.client.blocking import BlockingClient
    from gridscore.errors import EventRejectedError, GridscoreError, NoResultError
    from gridscore.features import OfflineMatrix, offline_matrix
    from gridscore.features.functions import allow_python
    from gridscore.grid import GridSettings
    from gridscore.grid.member import Cluster
    from gridscore.job import Job, load_job
    from gridscore.results.stream import Result, ResultStream
    from gridscore.scoring import Worker

_HOMES = {
    "BlockingClient": "gridscore.client.blocking",
    "Client": "gridscore.client",
    "Cluster": "gridscore.grid.member",
    "EventRejectedError": "gridscore.errors",
    "GridSettings": "gridscore.grid",
    "GridscoreError": "gridscore.errors",
    "Job": "gridscore.job",
    "NoResultError": "gridscore.errors",
    "OfflineMatrix": "gridscore.features",
    "Result": "gridscore.results.stream",
    "ResultStream": "gridscore.results.stream",
    "Worker": "gridscore.scoring",
    "allow_python": "gridscore.features.functions",
    "connect": "gridscore.client",
    "load_ipython_extension": "gridscore.client.notebook",
    "load_job": "gridscore.job",
    "offline_matrix": "gridscore.features",
}

__all__ = [
    "BlockingClient",
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
    "allow_python",
    "connect",
    "load_job",
    "offline_matrix",
]


def __getattr__(name: str) -> Any:
    # Imported when asked for: `gridscore --help` should not wait for XGBoost and the client.
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
