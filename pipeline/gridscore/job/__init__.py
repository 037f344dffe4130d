"""The job room: the job file, typed, validated and strict; its JSON Schema; its life in the cluster.

It offers :func:`load_job` and :func:`parse_job`, which give a :class:`Job`; :func:`job_json_schema` for editors; and
:class:`Jobs`, :class:`JobRecord` and :class:`JobState` for what becomes of jobs in the cluster.
"""

from __future__ import annotations

from gridscore.job.check import RESULT_FIELDS
from gridscore.job.file import (
    Decision,
    Feature,
    Job,
    Lookup,
    ModelRef,
    ResultSpec,
    Window,
    job_json_schema,
    load_job,
    parse_job,
)
from gridscore.job.life import JobRecord, Jobs, JobState
from gridscore.job.types import FieldType, LookupField

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
