"""A first job file, with comments: from a model's features, or from events as they are found."""

from __future__ import annotations

import datetime as dt
import json
import re
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from gridscore.errors import UsageError
from gridscore.job.completion import complete
from gridscore.job.file import Job, parse_job
from gridscore.job.types import MAX_NAME, FeatureName

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_FEATURE: TypeAdapter[str] = TypeAdapter(FeatureName)
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*( [A-Za-z0-9_]+)*")
_TIME = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:\d\d)")
_WORDS = {"null", "true", "false"}
_MAX_FIELDS, _MAX_LEVELS = 500, 8
_FEW = 50
"""Different texts of a field that may be a category, whatever the share of them."""


def shell(name: str, events: str = "") -> Job:
    """A job of this name without features.

    Raises:
        UsageError: It cannot be a job's name, or the map's cannot be one.
    """
    try:
        return Job.model_validate(
            {"job": name, "events": events or f"events.{name}", "model": name, "results": f"results.{name}"}
        )
    except ValidationError as error:
        reason = error.errors(include_input=False)[0]["msg"].removeprefix("Value error, ")
        raise UsageError(f"The job cannot have this name: {reason}.", "Give another one: --name NAME.") from None


def name_of(text: str) -> str:
    """A job's name that is like this text, such as the name of a file or a map."""
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-")[:MAX_NAME] or "job"


def text_of_events(job: Job, events: Iterable[Mapping[str, Any]]) -> str:
    """A job file for events like these.

    Args:
        job: A `shell`.
        events: As JSON has them; a text with an offset from UTC is a time.

    Raises:
        UsageError: They have no field that could be a feature.
    """
    found: dict[str, list[Any]] = {}
    count = 0
    for event in events:
        count += 1
        _collect(event, "", found)
    kinds, texts, left_out = {}, set(), {}
    for name, values in found.items():
        given = [value for value in values if value is not None]
        kind, why = _kind_of(given)
        if not kind and not why:
            continue
        if not why and not _is_feature(name):
            why = "its name cannot be a feature's"
        if why:
            left_out[name] = why
            continue
        kinds[name] = kind + "?" * (len(given) < count)
        if kind == "string":
            texts.add(name)
    if not kinds:
        raise UsageError("There is no field that could be a feature.", "Write the job file by hand: docs/job-file.md.")
    names = [name for name in kinds if len(name) <= MAX_NAME][:_MAX_FIELDS]
    made = complete(job, names, (), texts, {})
    schema = {field: {"type": kinds[kind.key(field)], "json": kind.json_name} for field, kind in made.schema_.items()}
    features = {name: feature.expression for name, feature in made.features.items()}
    return _text(job, schema, features, left_out)


def text_of_job(job: Job) -> str:
    """A job file for a job that is complete."""
    schema = {field: {"type": str(kind), "json": kind.json_name} for field, kind in job.schema_.items()}
    return _text(job, schema, {name: feature.expression for name, feature in job.features.items()}, {})


def _collect(event: Mapping[str, Any], around: str, found: dict[str, list[Any]]) -> None:
    for key, value in event.items():
        name = f"{around}{key}"
        if isinstance(value, dict) and key and name.count(".") < _MAX_LEVELS:
            _collect(value, f"{name}.", found)
        elif name in found or len(found) < _MAX_FIELDS:
            found.setdefault(name, []).append(value)


def _kind_of(values: Sequence[Any]) -> tuple[str, str]:
    """The type of the values, or why they are no feature; nothing of both if there are none."""
    if not values:
        return "", ""
    if all(isinstance(value, bool) for value in values):
        return "bool", ""
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    if numbers:
        whole = all(isinstance(value, int) and -(2**63) <= value < 2**63 for value in values)
        return "int" if whole else "float", ""
    if not all(isinstance(value, str) for value in values):
        return "", "its values are lists, or of several kinds"
    if all(map(_is_time, values)):
        return "", "it is a time: declare it a timestamp, and make features of it, as `hour(it)`"
    if len(set(values)) > max(_FEW, len(values) // 10):
        return "", "its texts are all different, as keys are"
    return "string", ""


def _is_time(text: str) -> bool:
    try:
        return _TIME.fullmatch(text) is not None and dt.datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        return False


def _is_feature(name: str) -> bool:
    try:
        _FEATURE.validate_python(name)
    except ValidationError:
        return False
    return "\\" not in name


def _text(job: Job, schema: Mapping[str, Any], features: Mapping[str, str], left_out: Mapping[str, str]) -> str:
    fields = [
        f"  {field}: " + (f"{{type: {kind['type']}, json: {_quoted(kind['json'])}}}" if kind["json"] else kind["type"])
        for field, kind in schema.items()
    ]
    made = [f"  {_quoted(name)}: {expression}" for name, expression in features.items()]
    others = [f"  # {json.dumps(name)}: {why}" for name, why in left_out.items()]
    first = next(iter(schema))
    text = f"""\
# A job of Gridscore. `gridscore job check` says what is wrong with it, docs/job-file.md what else it can say.
job: {_quoted(job.name)}

# The event map. It must have an event journal, which `gridscore submit` gives it if it does not exist yet.
events: {_quoted(job.events)}

# Fields of an event, with their types: float, int, string, bool or timestamp; `?` is for what may be null or absent.
schema:
{_lines(fields)}
# Reference maps, for features such as `customer.age`:
# lookups:
#   customer: {{map: lookups.customers, key: customer, fields: {{age: float?}}}}

# The model's features, in the order of its columns: expressions over fields, lookups and features further up.
features:
{_lines([*made, *others])}
# The model in the registry; the job follows its alias `champion`.
model: {_quoted(job.model.name)}

# The result map. A result's key is its event's key.
results: {_quoted(job.results)}

# What a result repeats of its event:
# result: {{include: [{first}]}}

# What to do, by the score and by what features are made of; the last is for all the rest:
# decisions:
#   - {{decision: review, when: score > 0.9 and {first} is not None}}
#   - {{decision: pass}}
"""
    parse_job(text, "the file")
    return text


def _lines(lines: Sequence[str]) -> str:
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """The text as YAML has it: plain where nothing could be taken for something else."""
    return text if _PLAIN.fullmatch(text) and text.lower() not in _WORDS else json.dumps(text, ensure_ascii=False)
