"""The job room: the job file, typed, validated and strict; its JSON Schema; its life in the cluster.

It offers :func:`load_job` and :func:`parse_job`, which give a :class:`Job`; :func:`job_json_schema` for editors; and
:class:`Jobs`, :class:`JobRecord` and :class:`JobState` for what becomes of jobs in the cluster.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gridscore.job.check import RESULT_FIELDS
    from gridscore.job.file import Job, job_json_schema, load_job, parse_job
    from gridscore.job.life import JobRecord, Jobs, JobState
    from gridscore.job.parts import Decision, Feature, Lookup, ModelRef, ResultSpec, Window
    from gridscore.job.types import FieldType, LookupField

# By name, its module; of the others it is `file`.
_HOMES = {
    **dict.fromkeys(("JobRecord", "JobState", "Jobs"), "life"),
    **dict.fromkeys(("Decision", "Feature", "Lookup", "ModelRef", "ResultSpec", "Window"), "parts"),
    **dict.fromkeys(("FieldType", "LookupField"), "types"),
    "RESULT_FIELDS": "check",
}

__all__ = [
    "RESULT_FIELDS",
    "Decision",
    "Feature",
    "FieldType",
    "Job",
    "JobRecord",
    "JobState",
    "Jobs",
    "Lookup",
    "LookupField",
    "ModelRef",
    "ResultSpec",
    "Window",
    "job_json_schema",
    "load_job",
    "parse_job",
]


def __getattr__(name: str) -> Any:
    # Imported when asked for: the command line shows the settings of plugs without the Hazelcast client.
    if name in __all__:
        return getattr(import_module(f"gridscore.job.{_HOMES.get(name, 'file')}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
