"""The job file: what a job is, as frozen models, read from YAML with every problem found at once and in its line."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError

from gridscore.errors import JobFileError
from gridscore.job.check import Parts, check, compile_features
from gridscore.job.document import Problem, read_yaml
from gridscore.job.gates import ChampionGate, Gates, GoldenRow, LatencyGate, MetricGate, ParityGate, ShiftGate
from gridscore.job.monitoring import Drift, Experiment, Labels, OutcomeBound
from gridscore.job.parts import Class, Decision, Feature, Lookup, ModelRef, Reasons, ResultSpec, Window
from gridscore.job.plugs import sections
from gridscore.job.plugs.sections import AnySink, AnySource  # noqa: TC001 -- pydantic reads them
from gridscore.job.problems import MAX_PROBLEMS, dotted, error_of, located, within
from gridscore.job.types import (
    DEAD_LETTER_BYTES,
    DEAD_LETTERS,
    KINDS,
    MAX_FEATURES,
    Duration,
    FeatureName,
    FieldType,
    JobName,
    LookupField,
    MapName,
    MaxDeadLetterBytes,
    MaxDeadLetters,
    Name,
    Strict,
    seconds_of,
)
from gridscore.job.windows import MAX_SECONDS, MAX_WINDOWS, call_of, calls_of
from gridscore.texts import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path as FilePath

    from gridscore.job.document import Document, Path
    from gridscore.job.plugs.base import SourceSettings


_SCHEMA_URL = "https://json-schema.org/draft/2020-12/schema"

# Events that a journal can hold: its capacity is an int32, and an event that is removed takes two entries.
MAX_JOURNAL = 1_000_000_000


def _lateness(value: str) -> str:
    if seconds_of(value) > MAX_SECONDS:
        raise ValueError(f"`{value}`: an event may be 90 days late at most")
    return value


class Job(Strict):
    """A job: which events, which features, which model, and where results go."""

    model_config = ConfigDict(populate_by_name=True, title="Gridscore job file")

    name: JobName = Field(alias="job", description="Name of the job in the cluster.")
    description: str = Field(default="", max_length=2_000, description="For people.")
    events: MapName = Field(description="The event map; it must have an event journal.")
    schema_: dict[Name, FieldType] = Field(
        default={},
        alias="schema",
        min_length=1,
        max_length=MAX_FEATURES,
        description="Fields of an event, with their types; of those that are not here, and of which the model's own "
        "features are read, the types are the model's.",
    )
    lookups: dict[Name, Lookup] = Field(
        default={}, max_length=64, description="Reference maps, by the name that expressions use."
    )
    event_key: Name | None = Field(
        default=None, description="The event field that is each event's key in the event map, where windows need it."
    )
    order_by: Name | None = Field(
        default=None,
        description="The event field with the time at which an event happened, for windows and `valid_from`.",
    )
    lateness: Literal["none"] | Annotated[Duration, AfterValidator(_lateness)] = Field(
        default="1m",
        description="How much older than the newest event of its entity an event may be and still count in windows.",
    )
    windows: dict[Name, Window] = Field(
        default={},
        max_length=MAX_WINDOWS,
        description="Windows over the events of an entity, by the name that expressions use.",
    )
    late: MapName | None = Field(
        default=None,
        description="The map for events that are too late to count in windows; without it, they are counted.",
    )
    features: dict[FeatureName, Feature] = Field(
        default={},
        min_length=1,
        max_length=MAX_FEATURES,
        description="The model's features, in its order; if they are not here, they are the fields of these names.",
    )
    margin: Feature | None = Field(
        default=None,
        description="Expression of the margin that each event's score begins with, instead of the model's base score: "
        "`base_margin` in XGBoost.",
    )
    model: ModelRef = Field(description="Which model scores.")
    results: MapName = Field(description="The result map; a result's key is the event's key.")
    result: ResultSpec = Field(default=ResultSpec(), description="What a result holds.")
    decisions: tuple[Decision, ...] = Field(
        default=(),
        max_length=64,
        description="Decisions by score, from the highest threshold to the last, which has none.",
    )
    classes: tuple[Class, ...] = Field(
        default=(),
        min_length=2,
        max_length=1_000,
        description="Names of the model's classes in their order: each result has a `label`, and decisions can use "
        "`label` and `score.NAME`.",
    )
    gates: Gates = Field(
        default=Gates(),
        description="What a version of the model must pass before the alias that the job follows points at it.",
    )
    drift: Drift | None = Field(
        default=None,
        description="When features and scores count as drifted from what the model was trained on; without it, "
        "nobody looks.",
    )
    labels: Labels | None = Field(
        default=None, description="What came of events, when that is known: for `gridscore model report`."
    )
    experiment: Experiment = Field(
        default=Experiment(), description="How `gridscore experiment start` tries another version of the model."
    )
    start: Literal["oldest", "latest"] = Field(
        default="oldest", description="Where to begin in the journal when there are no committed offsets."
    )
    on_loss: Literal["rescan", "continue", "halt"] = Field(
        default="rescan",
        description="When the journal has lost events before they were read: `rescan` finds those without a result in "
        "the event map and scores them; `continue` only counts them; `halt` fails the job.",
    )
    retain: Literal["all"] | Duration = Field(
        default="all",
        description="How long scored events and their results are kept, as `1h`; `all` keeps them for good.",
    )
    audit: Literal["off"] | Duration = Field(
        default="1h", description="How often the cluster is asked for events that have no result, as `1h`; or `off`."
    )
    max_dead_letters: MaxDeadLetters = Field(
        default=DEAD_LETTERS,
        description="Dead letters that are kept; further events that cannot be scored are counted, and stay in the "
        "event map.",
    )
    max_dead_letter_bytes: MaxDeadLetterBytes = Field(default=DEAD_LETTER_BYTES, description="The same in bytes.")
    peak_rate: float | None = Field(
        default=None,
        gt=0,
        le=1e9,
        allow_inf_nan=False,
        description="Events per second at the worst of times; with it, the journal's capacity is checked.",
    )
    headroom: Duration = Field(
        default="30s", description="How long the journal should hold events at the peak rate that nobody reads."
    )
    sources: dict[JobName, AnySource] = Field(
        default={},
        max_length=64,
        description="Where events come from, for `gridscore source run`; to the job's event map by default.",
    )
    sinks: dict[JobName, AnySink] = Field(
        default={},
        max_length=64,
        description="Where results go, for `gridscore sink run`; from the job's result map by default.",
    )

    @model_validator(mode="before")
    @classmethod
    def _maps_of_plugs(cls, value: Any) -> Any:
        return sections.with_maps(value) if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _parts_fit(self) -> Job:
        problems = check(_parts(self.schema_, self.lookups, self.features, self, frozenset(), self.is_complete))
        if problems:
            text = "; ".join(f"{dotted(path)}: {message}" for path, message in problems)
            raise PydanticCustomError("job_parts", "{text}", {"text": text})
        return self

    @model_validator(mode="after")
    def _reasons_fit(self) -> Job:
        reasons = self.result.reasons
        if reasons is None:
            return self
        if taken := {"reasons", "amended_at"} & set(self.result.include):
            raise ValueError(f"a result with `reasons` cannot include the event field `{min(taken)}`: it has its own")
        there = [each.decision for each in self.decisions]
        for kind, names, known in (
            ("decision", reasons.decisions, there),
            ("feature", reasons.text, self.feature_names if self.is_complete else list(reasons.text)),
        ):
            if unknown := [name for name in names if name not in known]:
                meant = did_you_mean(unknown[0], known)
                raise ValueError(f"`reasons`: there is no {kind} `{unknown[0]}`{meant}")
        if (asked := self.explained) is not None:
            problems = check(_parts(self.schema_, self.lookups, self.features, asked, frozenset(), self.is_complete))
            if problems:
                raise ValueError(f"`reasons`: its `when`: {problems[0][1]}")
        return self

    @property
    def explained(self) -> Job | None:
        """This job with the condition of its reasons as its first decision; None if there is no condition."""
        if self.result.reasons is None or self.result.reasons.when is None:
            return None
        asked = Decision(decision="yes", when=self.result.reasons.when), Decision(decision="no")
        return self.model_copy(update={"decisions": asked})

    @model_validator(mode="after")
    def _names_differ(self) -> Job:
        entries: list[tuple[str, AnySource | AnySink]] = [*self.sources.items(), *self.sinks.items()]
        names = [self.name, *(each.name or f"{self.name}-{key}" for key, each in entries)]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(
                f"two of its job, sources and sinks are called `{twice}`, and would share their dead letters: "
                "give one of them another `name`"
            )
        return self

    @model_validator(mode="after")
    def _keys_fit(self, info: ValidationInfo) -> Job:
        if info.context is not sections.RECORDED:  # other sources of such a job may work
            for key, source in self.sources.items():
                self.require_keys_of(source, key)
        return self

    @model_validator(mode="after")
    def _journal_fits(self) -> Job:
        if (self.peak_rate or 0.0) * self.headroom_seconds > MAX_JOURNAL:
            raise ValueError(
                f"a `peak_rate` of {self.peak_rate:,.0f} for the `headroom` of {self.headroom} is more than the "
                f"{MAX_JOURNAL:,} events that a journal can hold"
            )
        return self

    @model_validator(mode="after")
    def _gates_can_be_judged(self) -> Job:
        if self.gates.shift is not None and self.windows:
            raise ValueError("the gate `shift` cannot be judged for a job with `windows`: it looks at single events")
        if self.margin is None and any(row.margin is not None for row in self.gates.golden):
            raise ValueError("a golden row has a `margin`, and the job has none")
        if self.margin is not None and any(row.margin is None for row in self.gates.golden):
            raise ValueError("the job has a `margin`: each golden row says what its own is")
        return self

    @model_validator(mode="after")
    def _maps_apart(self) -> Job:
        read = {self.events, self.results, *(lookup.map for lookup in self.lookups.values())}
        labels, alerts = self.labels and self.labels.map, self.drift and self.alerts_map
        for what, name in (("alerts", alerts), ("labels", labels), ("late events", self.late)):
            if name in read:
                raise ValueError(f"`{name}` holds events, results or a lookup: give {what} a map of their own")
        if self.late is not None and self.late in (labels, alerts):
            raise ValueError(f"`{self.late}` holds labels or alerts: give late events a map of their own")
        if self.late is not None and not self.windows:
            raise ValueError("`late` is for events that are too late for `windows`, and the job has none")
        return self

    @model_validator(mode="after")
    def _labels_can_be_joined(self) -> Job:
        self.check_outcomes(self.experiment)
        if (labels := self.labels) is None:
            return self
        if labels.key is not None and labels.key not in self.result.include:
            raise ValueError(f"`key: {labels.key}` of `labels` must be in `result: {{include: [{labels.key}]}}`")
        if self.classes:
            raise ValueError("`labels` are compared with one score, and a job with `classes` has several")
        if unknown := labels.cost.keys() - {decision.decision for decision in self.decisions}:
            raise ValueError(f"`cost` of `{min(unknown)}`, which is not one of the `decisions`")
        return self

    def check_outcomes(self, experiment: Experiment) -> None:
        """Raise a ValueError if labels cannot tell the outcomes of an experiment."""
        if experiment.labels_needed and self.labels is None:
            raise ValueError("an experiment with outcomes needs `labels` in the job file")
        for bound in experiment.outcomes:
            if bound.name == "cost" and self.labels is not None and not self.labels.cost:
                raise ValueError("`cost` is an outcome of the experiment, and `labels` say nothing of `cost`")
            if bound.decision not in (None, *(decision.decision for decision in self.decisions)):
                raise ValueError(f"an outcome of `{bound.decision}`, which is not one of the `decisions`")

    @property
    def alerts_map(self) -> str:
        """Where alerts of drift go."""
        return (self.drift.alerts if self.drift is not None else None) or f"alerts.{self.name}"

    @property
    def retain_seconds(self) -> float | None:
        """How long scored events and their results are kept; None: for good."""
        return None if self.retain == "all" else seconds_of(self.retain)

    @property
    def audit_seconds(self) -> float | None:
        """Pause between two audits; None: there are none."""
        return None if self.audit == "off" else seconds_of(self.audit)

    @property
    def lateness_seconds(self) -> float:
        """How much older than the newest event of its entity an event may be and still count in windows."""
        return 0.0 if self.lateness == "none" else seconds_of(self.lateness)

    @property
    def headroom_seconds(self) -> float:
        """How long the journal should hold events at the peak rate that nobody reads."""
        return seconds_of(self.headroom)

    @property
    def is_complete(self) -> bool:
        """Whether it names its features; `completion` gives it its model's otherwise."""
        return bool(self.features)

    def require_features(self) -> None:
        """Refuse a job that names no features.

        Raises:
            JobFileError: It has none.
        """
        if not self.is_complete:
            raise JobFileError(
                f"The job file of `{self.name}` names no features: they are those of its model.",
                "Name the model's file: `--model FILE`; or write `schema` and `features` into the job file.",
            )

    @property
    def undated_lookups(self) -> list[str]:
        """Lookups whose entries have no time: a history is joined with them as they are today."""
        return [name for name, lookup in self.lookups.items() if lookup.valid_from is None]

    @property
    def what_may_leak(self) -> str | None:
        """What training may see of the time after an event; None if nothing."""
        if not (undated := self.undated_lookups):
            return None
        named = ", ".join(f"`{name}`" for name in undated)
        return (
            f"Training joins the lookup{'s' * (len(undated) > 1)} {named} as of today: what has changed since an event "
            "leaks into its features. With `valid_from`, a table is joined as of the event's time."
        )

    @property
    def used_windows(self) -> list[str]:
        """The windows that its features look at."""
        if not self.windows or not self.is_complete:
            return []
        nodes = compile_features(self.features, self.schema_, self.lookups, self.windows).values()
        used = {call_of(call).window for call in calls_of(nodes)}
        return [name for name in self.windows if name in used]

    @property
    def routes_windows(self) -> bool:
        """Whether its windows have other keys than its events, so that their states lie in other partitions."""
        used = self.used_windows
        return bool(used) and (len(used) > 1 or self.windows[used[0]].key != (self.event_key,))

    @property
    def wants_whole_keys(self) -> bool:
        """Whether its windows need keys of events that are whole numbers."""
        field = self.schema_.get(self.event_key or "")
        return field is not None and field.type == "int" and bool(self.used_windows) and not self.routes_windows

    def require_keys_of(self, source: SourceSettings, name: str) -> None:
        """Refuse a source that puts events under keys which its windows cannot use.

        Raises:
            ValueError: It makes strings of whole numbers.
        """
        is_read = self.events in (source.to, *getattr(source, "also", ()))
        if source.makes_texts_of_keys and is_read and self.wants_whole_keys:
            raise ValueError(
                f"the source `{name}` makes strings of all keys, and the `event_key` of `{self.name}`, "
                f"`{self.event_key}`, is an int: none of its events could be scored. Have `{self.event_key}` sent as a "
                "string, and declare it as one; or leave out `event_key`"
            )

    @property
    def feature_names(self) -> tuple[str, ...]:
        """The features in the model's order."""
        return tuple(self.features)

    @property
    def has_functions(self) -> bool:
        """Whether Python functions make some of its features."""
        return any(feature.python for feature in self.features.values())

    @property
    def served_features(self) -> tuple[str, ...]:
        """Features that results repeat."""
        logged = self.result.features
        return self.feature_names if logged == "all" else logged

    @property
    def has_conditions(self) -> bool:
        """Whether decisions need more than one score and thresholds."""
        return any(self.classes or decision.when is not None for decision in self.decisions)

    @property
    def decision_steps(self) -> tuple[tuple[float, ...], tuple[str, ...]]:
        """Thresholds, ascending, and the decisions: that below the first threshold, then from each on."""
        ascending = self.decisions[::-1]
        return (
            tuple(decision.at_least for decision in ascending if decision.at_least is not None),
            tuple(decision.decision for decision in ascending),
        )

    def to_json(self) -> dict[str, Any]:
        """The job as plain JSON values, for :meth:`from_json`."""
        return self.model_dump(mode="json", by_alias=True, exclude_defaults=True)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Job:
        """The job that :meth:`to_json` gave.

        Raises:
            ValueError: It is not a job.
        """
        return cls.model_validate(value, by_alias=True, by_name=False, context=sections.RECORDED)


# The models of the parts of a file, by their path without the names that a user gave.
_MODELS: dict[tuple[str, ...], type[Strict]] = {
    (): Job,
    ("schema",): FieldType,
    ("lookups",): Lookup,
    ("lookups", "fields"): LookupField,
    ("windows",): Window,
    ("features",): Feature,
    ("margin",): Feature,
    ("model",): ModelRef,
    ("result",): ResultSpec,
    ("result", "reasons"): Reasons,
    ("decisions",): Decision,
    ("gates",): Gates,
    ("gates", "golden"): GoldenRow,
    ("gates", "metric"): MetricGate,
    ("gates", "champion"): ChampionGate,
    ("gates", "latency"): LatencyGate,
    ("gates", "shift"): ShiftGate,
    ("gates", "parity"): ParityGate,
    ("drift",): Drift,
    ("labels",): Labels,
    ("experiment",): Experiment,
    ("experiment", "outcomes"): OutcomeBound,
}


def load_job(path: FilePath | str) -> Job:
    """Read a job file.

    Raises:
        JobFileError: It cannot be read, or is not valid; the message has a line for each problem.
    """
    from pathlib import Path

    path = Path(path)
    try:
        with path.open("rb") as file:
            raw = file.read((1 << 20) + 1)
        text = raw.decode("utf-8-sig")
    except FileNotFoundError:
        raise JobFileError(f"There is no job file `{path}`.", "Give the path of a YAML file.") from None
    except UnicodeDecodeError as error:
        raise JobFileError(f"{path}: not UTF-8 text, at byte {error.start}.") from None
    except OSError as error:
        raise JobFileError(f"The job file `{path}` cannot be read: {error.strerror or error}.") from None
    return parse_job(text, str(path))


def parse_job(text: str, source: str) -> Job:
    """Read the text of a job file.

    Args:
        text: YAML.
        source: What to call it in messages, usually its path.

    Raises:
        JobFileError: It is not valid; the message has a line for each problem.
    """
    document = read_yaml(text)
    _name_nested_fields(document)
    _name_listed_features(document)
    problems = list(document.problems)
    job = None
    if document.data is not None:
        try:
            job = Job.model_validate(document.data, by_alias=True, by_name=False)
        except ValidationError as error:
            problems += located(error, document, _MODELS)
            problems += [Problem(document.line_of(p), within(p, m)) for p, m in check(_draft(document.data))]
    elif not problems:
        problems.append(Problem(1, "the file is empty"))
    if job is None or problems:
        raise error_of(problems, source)
    return job


def _name_nested_fields(document: Document) -> None:
    """Let `device.os` in the schema be the field `device_os` at that place; what is wrong goes to the problems."""
    data = document.data
    if not isinstance(data, dict) or not isinstance(fields := data.get("schema"), dict):
        return
    schema: dict[str, Any] = {}
    for name, value in fields.items():
        field = name
        if "." in name:
            field, line = name.replace(".", "_"), document.line_of(("schema", name))
            if field in fields or field in schema:
                document.problems.append(Problem(line, f"schema field `{name}`: there is a field `{field}` as well"))
            if isinstance(value, dict) and "json" in value:
                message = f"schema field `{name}`: its name is its place, leave out `json`"
                document.problems.append(Problem(line, message))
            elif isinstance(value, str | list | dict):
                long = value if isinstance(value, dict) else {"type": value}
                value = {**long, "json": f"$.{name}"}  # noqa: PLW2901
        schema.setdefault(field, value)
    lines: dict[Path, int] = {}
    for path, line in document.lines.items():
        if path[:1] == ("schema",) and len(path) > 1:
            path = ("schema", str(path[1]).replace(".", "_"), *path[2:])  # noqa: PLW2901
        lines[path] = line
    document.lines, document.data = lines, {**data, "schema": schema}


def _name_listed_features(document: Document) -> None:
    """Let a list of features be a mapping, as a job has it; what is wrong with it goes to the document's problems."""
    data = document.data
    if not isinstance(data, dict) or not isinstance(items := data.get("features"), list):
        return
    fields = _draft({**data, "features": None}).fields
    places = {kind.key(name): name for name, kind in fields.items()} | {name: name for name in fields}
    features: dict[Any, Any] = {}
    for number, item in enumerate(items):
        if len(document.problems) > MAX_PROBLEMS:
            break  # no more are shown
        at = ("features", number)
        if not isinstance(item, str | dict):
            message = f"`features[{number + 1}]`: it must be the name of a field, or `name: expression`"
            document.problems.append(Problem(document.line_of(at), message))
            continue
        for name, value in item.items() if isinstance(item, dict) else [(item, None)]:
            line = document.line_of((*at, name))
            if name in features:
                document.problems.append(Problem(line, f"the feature `{name}` is here twice"))
            elif isinstance(item, str):
                features[name] = _own_field(document, name, places, fields, line)
            else:
                features[name] = value
    lines: dict[Path, int] = {}
    for path, line in document.lines.items():
        if path[:1] == ("features",) and len(path) > 1:
            item = items[path[1]]  # type: ignore[index]
            path = ("features", item) if isinstance(item, str) else ("features", *path[2:])  # noqa: PLW2901
        lines.setdefault(path, line)
    document.lines, document.data = lines, {**data, "features": features}


def _own_field(
    document: Document, name: str, places: Mapping[str, str], fields: Mapping[str, FieldType], line: int
) -> str:
    """The expression of a feature that is the field of its name."""
    field = places.get(name)
    if field is None:
        written = document.data.get("schema")
        if isinstance(written, dict) and name not in written:  # else that is what is told
            meant = did_you_mean(name, places)
            document.problems.append(Problem(line, f"feature `{name}`: there is no event field `{name}`{meant}"))
        return "0"  # and no more is said of it
    return f"category({field})" if fields[field].type == "string" else field


def job_json_schema() -> dict[str, Any]:
    """JSON Schema of the job file, for editors."""
    schema = Job.model_json_schema(by_alias=True, mode="validation")
    definitions = schema["$defs"]
    kinds = [f"{kind}{mark}" for kind in KINDS for mark in ("", "?")]
    for name in ("FieldType", "LookupField"):
        long = definitions[name]
        long["properties"]["type"] = {**long["properties"]["type"], "enum": [*kinds, "array", "array?"]}
        forms: list[dict[str, Any]] = [{"type": "string", "enum": kinds}]
        if name == "FieldType":
            items = {"anyOf": [forms[0], {"type": "object", "additionalProperties": {"$ref": "#/$defs/FieldType"}}]}
            forms.append({"type": "array", "items": items, "minItems": 1, "maxItems": 1})
        definitions[name] = {"anyOf": [*forms, long]}
    expression = {"type": ["string", "number", "boolean"]}
    definitions["Feature"]["properties"]["expression"] |= expression
    definitions["Feature"] = {"anyOf": [expression, definitions["Feature"]]}
    features = schema["properties"]["features"]
    listed = {
        "anyOf": [{"type": "string"}, {"type": "object", "additionalProperties": features["additionalProperties"]}]
    }
    described = {key: features.pop(key) for key in ("description", "title", "default")}
    schema["properties"]["features"] = {
        "anyOf": [features, {"type": "array", "minItems": 1, "items": listed}],
        **described,
    }
    definitions["ModelRef"] = {"anyOf": [{"type": "string"}, definitions["ModelRef"]]}
    for name in ("Lookup", "Window"):
        key = definitions[name]["properties"]["key"]
        single = {"type": ["string", "number"], "description": key.pop("description"), "title": key.pop("title")}
        definitions[name]["properties"]["key"] = {"anyOf": [single, key]}
    short = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
    definitions["Window"] = {"anyOf": [*short["anyOf"], definitions["Window"]]}
    for section in sections.SECTIONS:
        schema["properties"][section]["additionalProperties"] = sections.json_schema(section, definitions)
    for unused in ("SourceSettings", "SinkSettings"):
        definitions.pop(unused, None)
    return {"$schema": _SCHEMA_URL, **schema, "dependentRequired": {"features": ["schema"]}}


def _parts(schema: Any, lookups: Any, features: Any, rest: Any, broken: frozenset[str], complete: bool) -> Parts:
    maps = {key: value for key in ("events", "results") if isinstance(value := getattr(rest, key, None), str)}
    result = getattr(rest, "result", None)
    include, logged = (result.include, result.features) if isinstance(result, ResultSpec) else ((), ())
    decisions, margin = getattr(rest, "decisions", ()) or (), getattr(rest, "margin", None)
    classes = getattr(rest, "classes", ()) or ()
    times, key = getattr(rest, "order_by", None) or "", getattr(rest, "event_key", None) or ""
    rest_of = (include, decisions, maps, broken, margin, complete, classes, rest.windows, times, key, logged)
    return Parts(schema, lookups, features, *rest_of)


class _Rest:
    """The other keys of a file whose parts are not all right."""

    windows: Mapping[str, Window]


@cache
def _adapter(part: str) -> TypeAdapter[Any]:
    """What checks a part of a file by itself; of a section with names, an entry of it."""
    parts: dict[str, Any] = {
        "schema": FieldType,
        "lookups": Lookup,
        "windows": Window,
        "features": Feature,
        "events": MapName,
        "results": MapName,
        "result": ResultSpec,
        "decisions": tuple[Decision, ...],
        "classes": tuple[Class, ...],
        "margin": Feature | None,
        "order_by": Name | None,
        "event_key": Name | None,
    }
    return TypeAdapter(parts[part])


def _draft(data: Any) -> Parts:
    """Those parts of a file that are right in themselves, to find what is wrong between them as well."""
    if not isinstance(data, dict):
        return Parts()
    broken: set[str] = set()
    sections: dict[str, dict[str, Any]] = {}
    for section in ("schema", "lookups", "windows", "features"):
        found = sections[section] = {}
        values = data.get(section)
        for name, value in values.items() if isinstance(values, dict) else ():
            try:
                found[name] = _adapter(section).validate_python(value)
            except ValidationError:
                broken.add(name)
    if not sections["schema"] and data.get("schema") is not None:
        broken.add("schema")  # it is there, and wrong
    rest = _Rest()
    for key in ("events", "results", "result", "decisions", "margin", "classes", "order_by", "event_key"):
        try:
            setattr(rest, key, _adapter(key).validate_python(data.get(key)))
        except ValidationError:
            broken |= {"classes"} & {key} & data.keys()
    rest.windows = sections["windows"]
    parts = (sections["schema"], sections["lookups"], sections["features"])
    return _parts(*parts, rest, frozenset(broken), data.get("features") is not None)
