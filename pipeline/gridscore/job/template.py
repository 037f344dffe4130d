"""A first job file, with comments: from a model's features, or from events as they are found."""

from __future__ import annotations

import datetime as dt
import json
import re
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from gridscore.errors import UsageError
from gridscore.job.check import RESULT_FIELDS
from gridscore.job.completion import complete
from gridscore.job.file import Job, parse_job
from gridscore.job.types import MAX_FEATURES, MAX_NAME, FeatureName

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_FEATURE: TypeAdapter[str] = TypeAdapter(FeatureName)
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*( [A-Za-z0-9_]+)*")
_TIME = re.compile(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:\d\d)?)?")
_WORDS = {"null", "true", "false"}
_MAX_LEVELS = 8
_FEW = 50  # different texts of a field that may be a category, whatever the share of them


def shell(name: str, events: str = "") -> Job:
    """A job of this name without features.

    Raises UsageError if it cannot be a job's name, or the map's cannot be one.
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

    `job`: a `shell`; `events`: as JSON has them; a text with an offset from UTC is a time. Raises UsageError if they
    have no field that could be a feature.
    """
    found: dict[str, list[Any]] = {}
    left_out: dict[str, str] = {}
    count, is_all = 0, True
    for event in events:
        count += 1
        is_all = _collect(event, "", found, left_out) and is_all
    kinds, texts = {}, set()
    for name, values in found.items():
        given = [value for value in values if value is not None]
        kind, why = _kind_of(given)
        if not kind and not why:
            continue
        if not why and not _is_feature(name):
            why = "its name cannot be a feature's"
        if why or name in left_out:
            left_out.setdefault(name, why)
            continue
        kinds[name] = kind + "?" * (len(given) < count)
        if kind == "string":
            texts.add(name)
    if not kinds:
        raise UsageError("There is no field that could be a feature.", "Write the job file by hand: docs/job-file.md.")
    made = complete(job, tuple(kinds), (), texts, {})
    schema = {field: {"type": kinds[kind.key(field)], "json": kind.json_name} for field, kind in made.schema_.items()}
    features = {name: feature.expression for name, feature in made.features.items()}
    notes = [f"{json.dumps(name)}: {why}" for name, why in left_out.items()]
    if not is_all:
        notes.append(
            f"There are more fields than {MAX_FEATURES:,}, which is what a job can have: the others were not looked at."
        )
    notes.append("This was guessed: take out the label, keys, and whatever is not known yet when an event comes.")
    return _text(job, schema, features, notes)


def text_of_job(job: Job) -> str:
    """A job file for a job that is complete."""
    schema = {field: {"type": str(kind), "json": kind.json_name} for field, kind in job.schema_.items()}
    return _text(job, schema, {name: feature.expression for name, feature in job.features.items()}, ())


def _collect(event: Mapping[str, Any], around: str, found: dict[str, list[Any]], left_out: dict[str, str]) -> bool:
    """Add each field's value, or why it is left out, and say whether there was room for all."""
    is_all = True
    for key, value in event.items():
        name = f"{around}{key}"
        if isinstance(value, dict) and key and name.count(".") < _MAX_LEVELS:
            is_all = _collect(value, f"{name}.", found, left_out) and is_all
        elif name in found or len(found) < MAX_FEATURES:
            found.setdefault(name, []).append(value)
            if around and "." in key:
                left_out[name] = "it lies in an object, and has a dot in its own name"
        else:
            is_all = False
    return is_all


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
        if all(isinstance(value, list) for value in values):
            return "", "its values are arrays: declare it as `[float]` or `[{price: float}]`, and take `len(it)`"
        return "", "its values are of several kinds"
    times = list(map(_time, values))
    if None not in times:
        if all(time.tzinfo for time in times if time):
            return "", "it is a time: declare it a timestamp, and make features of it, as `hour(it)`"
        return "", "it is a date, or a time without an offset from UTC, which a timestamp needs: `2026-01-31T12:00:00Z`"
    different = len(set(values))
    if different > max(_FEW, len(values) // 10):
        if different == len(values):
            return "", "its texts are all different, as keys are"
        return "", f"it has {different:,} different texts, which may be too many for a category"
    return "string", ""


def _time(text: str) -> dt.datetime | None:
    try:
        return dt.datetime.fromisoformat(text) if _TIME.fullmatch(text) else None
    except ValueError:
        return None


def _is_feature(name: str) -> bool:
    try:
        _FEATURE.validate_python(name)
    except ValidationError:
        return False
    return "\\" not in name


def _text(job: Job, schema: Mapping[str, Any], features: Mapping[str, str], notes: Sequence[str]) -> str:
    fields = [
        f"  {_word(field)}: "
        + (f"{{type: {kind['type']}, json: {_quoted(kind['json'])}}}" if kind["json"] else kind["type"])
        for field, kind in schema.items()
    ]
    made = [f"  {_quoted(name)}: {_word(expression)}" for name, expression in features.items()]
    others = [f"  # {note}" for note in notes]
    first = next((field for field in schema if field not in (*RESULT_FIELDS, "label")), "")
    repeated = f"# What a result repeats of its event:\n# result: {{include: [{_word(first)}]}}\n\n" if first else ""
    is_usable = first and "score" not in schema and "score" not in features
    condition = f"when: score > 0.9 and {first} is not None" if is_usable else "at_least: 0.9"
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

{repeated}\
# What to do, by the score and by what features are made of; the last is for all the rest:
# decisions:
#   - {{decision: review, {condition}}}
#   - {{decision: pass}}
"""
    parse_job(text, "the file")
    return text


def _lines(lines: Sequence[str]) -> str:
    return "\n".join(lines) + "\n"


def _word(text: str) -> str:
    """The text of a name or an expression, which YAML could take for no text."""
    return json.dumps(text) if text.lower() in _WORDS else text


def _quoted(text: str) -> str:
    """The text as YAML has it: plain where nothing could be taken for something else."""
    return text if _PLAIN.fullmatch(text) and text.lower() not in _WORDS else json.dumps(text, ensure_ascii=False)
