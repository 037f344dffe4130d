"""What must hold between the parts of a job file: names in expressions, types, maps, results, decisions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gridscore.errors import ExpressionError
from gridscore.job.expressions import Scope, as_float32, compile_expression
from gridscore.job.nodes import Node, is_coded
from gridscore.job.problems import MAX_PROBLEMS
from gridscore.job.syntax import parse
from gridscore.job.types import Type, seconds_of
from gridscore.job.windows import MAX_CALLS, calls_of
from gridscore.texts import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from gridscore.job.document import Path
    from gridscore.job.parts import Decision, Feature, Lookup, Window
    from gridscore.job.types import FieldType

# Fields of every result, which event fields cannot be; nor can they be `label` or `features`, if it has them.
RESULT_FIELDS = ("score", "decision", "version", "model", "revision", "sequence", "epoch", "scored_at")


@dataclass(slots=True)
class Parts:
    """The parts of a job, as far as each is right in itself."""

    fields: Mapping[str, FieldType] = field(default_factory=dict)  # the schema
    lookups: Mapping[str, Lookup] = field(default_factory=dict)  # by name
    features: Mapping[str, Feature] = field(default_factory=dict)  # by name
    include: Sequence[Any] = ()  # event fields to copy to results
    decisions: Sequence[Decision] = ()  # the list
    maps: Mapping[str, str] = field(default_factory=dict)  # names of maps by the key that names them
    broken: frozenset[str] = frozenset()  # names of what is wrong in itself; it is not reported again
    margin: Feature | None = None  # what each score begins with
    complete: bool = True  # whether there are features; if not, which fields the schema will have is not known
    classes: Sequence[str] = ()  # of the model, by name
    windows: Mapping[str, Window] = field(default_factory=dict)  # by name
    order_by: str = ""  # the field with the time of an event; empty if there is none
    event_key: str = ""  # the field that is an event's key; empty if none is named
    logged: Sequence[str] = ()  # features that results repeat, or `all`


def check(parts: Parts) -> list[tuple[Path, str]]:
    """Everything that is wrong between the parts, with its path in the file."""
    if parts.complete and not parts.fields and not parts.broken and parts.features:
        return [((), "the key `schema` is missing: without it, leave out `features` as well")]
    return [
        *_check_json_names(parts),
        *_check_lookups(parts),
        *_check_windows(parts),
        *_check_features(parts),
        *_check_margin(parts),
        *_check_result(parts),
        *_check_decisions(parts),
    ]


# Of all features together: a worker compiles them between two batches, and its leases must not run out meanwhile.
MAX_OPERATIONS = 30_000


def compile_keys(
    lookup: Lookup | Window, fields: Mapping[str, FieldType], broken: frozenset[str] = frozenset()
) -> list[Node]:
    """The key expressions of a lookup or window. Raises ExpressionError if one cannot be used."""
    nodes = []
    for text in lookup.key:
        node = compile_expression(text, Scope(fields, {}, broken=broken))
        if node.type == Type.BOOL:
            raise ExpressionError(f"`{text}` is true or false: a key is a string or a whole number")
        nodes.append(node)
    return nodes


def compile_features(
    features: Mapping[str, Feature],
    fields: Mapping[str, FieldType],
    lookups: Mapping[str, Lookup],
    windows: Collection[str] = (),
) -> dict[str, Node]:
    """The expressions of features by name, in order. Raises ExpressionError if one cannot be used."""
    compiled: dict[str, Node] = {}
    coded: set[str] = set()
    known = {name: lookup.fields for name, lookup in lookups.items()}
    for name, feature in features.items():
        scope = Scope(fields, known, tuple(compiled), coded, windows=windows)
        node = compiled[name] = compile_feature(name, feature, scope)
        if is_coded(node, coded):
            coded.add(name)
    return compiled


def compile_feature(name: str, feature: Feature, scope: Scope) -> Node:
    """What a feature is made of.

    Raises:
        ExpressionError: It cannot be used.
    """
    if not feature.python:
        return compile_expression(feature.expression, scope, category=name)
    args = []
    for text in feature.expressions:
        args.append(compile_expression(text, scope))
        if is_coded(args[-1], scope.coded):
            raise ExpressionError(f"`{text}` depends on what training learns, which a Python function cannot take")
    called = feature.python, feature.names, feature.column, seconds_of(feature.cpu)
    return Node("python", tuple(args), Type.NUMBER, called)


def compile_margin(
    margin: Feature,
    features: Collection[str],
    fields: Mapping[str, FieldType],
    lookups: Mapping[str, Lookup],
    broken: frozenset[str] = frozenset(),
) -> Node:
    """The expression of a job's margin. Raises ExpressionError if it cannot be used."""
    known = {name: lookup.fields for name, lookup in lookups.items()}
    node = compile_expression(margin.expression, Scope(fields, known, tuple(features), broken=broken))
    if node.type in {Type.STRING, Type.TIMESTAMP}:
        raise ExpressionError(f"the value is a {node.type}, a margin is a number")
    return node


def compile_decisions(
    decisions: Sequence[Decision],
    classes: Sequence[str],
    features: Collection[str],
    fields: Mapping[str, FieldType],
    lookups: Mapping[str, Lookup],
) -> list[Node]:
    """The conditions of all decisions but the last, which is for the rest.

    Raises ExpressionError if one cannot be used.
    """
    scope = Scope(fields, {name: lookup.fields for name, lookup in lookups.items()}, features, classes=tuple(classes))
    return [_condition(decision, scope) for decision in decisions[:-1]]


def _condition(decision: Decision, scope: Scope) -> Node:
    if decision.when is None:
        least = Node("constant", (), Type.NUMBER, as_float32(decision.at_least or 0.0))
        return Node("greater_equal", (Node("score", (), Type.NUMBER), least), Type.BOOL)
    node = compile_expression(decision.when, scope)
    if node.type != Type.BOOL:
        raise ExpressionError(f"the value is a {node.type}, a condition is true or false: compare it")
    return Node("truth", (node,), Type.BOOL) if node.nullable else node


def _check_json_names(parts: Parts) -> list[tuple[Path, str]]:
    found: list[tuple[Path, str]] = []
    for section, fields in [
        (("schema",), parts.fields),
        *((("lookups", name, "fields"), lookup.fields) for name, lookup in parts.lookups.items()),
    ]:
        seen: dict[str, str] = {}
        for name, kind in fields.items():
            other = seen.setdefault(kind.key(name), name)
            if other != name:
                found.append(((*section, name), f"it reads the same JSON field as `{other}`"))
        owners = {kind.path(name): name for name, kind in fields.items()}
        for path, name in owners.items():
            if outer := next((owners[path[:end]] for end in range(1, len(path)) if path[:end] in owners), None):
                found.append(((*section, name), f"it lies within what `{outer}` reads as {fields[outer].type}"))
    return found


def _check_lookups(parts: Parts) -> list[tuple[Path, str]]:
    found: list[tuple[Path, str]] = []
    for name, lookup in parts.lookups.items():
        path = ("lookups", name, "key")
        try:
            if parts.complete:
                compile_keys(lookup, parts.fields, parts.broken)
        except ExpressionError as error:
            found.extend((path, line) for line in error.message.splitlines())
        if lookup.valid_from is not None and not parts.order_by:
            path = ("lookups", name, "valid_from")
            found.append((path, "it needs the time of an event: name its field with `order_by`"))
        if lookup.map in (parts.maps.get("events"), parts.maps.get("results")):
            found.append((("lookups", name, "map"), f"`{lookup.map}` is the job's event or result map"))
    if parts.maps.get("events") and parts.maps.get("events") == parts.maps.get("results"):
        found.append((("results",), "results cannot go to the event map: every result would be an event"))
    return found


def _check_windows(parts: Parts) -> list[tuple[Path, str]]:
    found: list[tuple[Path, str]] = []
    for name, window in parts.windows.items():
        try:
            if parts.complete:
                compile_keys(window, parts.fields, parts.broken)
        except ExpressionError as error:
            found.extend((("windows", name, "key"), line) for line in error.message.splitlines())
    if parts.windows and not parts.order_by:
        found.append((("windows",), "windows need the time of an event: name its field with `order_by`"))
    for key, name, kinds in (("order_by", parts.order_by, ("timestamp",)), ("event_key", parts.event_key, _KEYS)):
        kind = parts.fields.get(name)
        if not name or name in parts.broken or not parts.complete:
            continue
        if kind is None:
            found.append(((key,), f"there is no event field `{name}`"))
        elif kind.type not in kinds or kind.optional:
            found.append(((key,), f"`{name}` is of the type {kind}: it must be {' or '.join(kinds)}, without `?`"))
    if parts.windows and parts.margin is not None and parts.margin.default is None:
        found.append(
            (("margin",), "a job with windows needs a `default` here: an event without a margin is not scored")
        )
    return found


_KEYS = ("string", "int")


def _check_features(parts: Parts) -> list[tuple[Path, str]]:
    found: list[tuple[Path, str]] = []
    lookups = {name: lookup.fields for name, lookup in parts.lookups.items()}
    names = list(parts.features)
    coded: set[str] = set()
    operations = 0
    calls: set[Node] = set()
    for position, (name, feature) in enumerate(parts.features.items()):
        if len(found) > MAX_PROBLEMS:
            break  # no more are shown, and each costs a search for what was meant
        scope = Scope(
            parts.fields, lookups, names[:position], coded, parts.broken, names[position:], windows=parts.windows
        )
        path = ("features", name, "of" if feature.python else "expression")
        try:
            node = compile_feature(name, feature, scope)
        except ExpressionError as error:
            found.extend((path, line) for line in error.message.splitlines())
            continue
        if (operations := operations + node.size) > MAX_OPERATIONS:
            found.append((path, f"the features up to this one come to more than {MAX_OPERATIONS:,} operations"))
            break
        calls.update(calls_of([node]))
        if len(calls) > MAX_CALLS:
            found.append((path, f"the features up to this one look at windows in more than {MAX_CALLS} ways"))
            break
        if is_coded(node, coded):
            coded.add(name)
        if node.type == Type.STRING:
            found.append((path, "the value is a string, a feature is a number: use `category(...)` or compare it"))
        if node.type == Type.TIMESTAMP:
            found.append(
                (
                    path,
                    "the value is a timestamp, a feature is a number: use `epoch(...)` or a part such as `hour(...)`",
                )
            )
    return found


def _check_margin(parts: Parts) -> list[tuple[Path, str]]:
    if parts.margin is None or not parts.complete:
        return []
    if parts.margin.python:
        return [(("margin",), "a margin is an expression: make a feature with `python`, and name that here")]
    try:
        compile_margin(parts.margin, parts.features, parts.fields, parts.lookups, parts.broken)
    except ExpressionError as error:
        return [(("margin", "expression"), line) for line in error.message.splitlines()]
    return []


def _check_result(parts: Parts) -> list[tuple[Path, str]]:
    found: list[tuple[Path, str]] = []
    seen = set()
    for position, name in enumerate(parts.include):
        path = ("result", "include", position)
        if name in seen:
            found.append((path, f"`{name}` is here twice"))
        elif name in RESULT_FIELDS or (name == "label" and parts.classes) or (name == "features" and parts.logged):
            found.append(
                (path, f"`{name}` is a field of every result already; give the event field another name with `json`")
            )
        elif parts.complete and name not in parts.fields and name not in parts.broken:
            found.append((path, f"there is no event field `{name}`{did_you_mean(str(name), parts.fields)}"))
        seen.add(name)
    for position, name in enumerate(() if parts.logged == "all" or not parts.complete else parts.logged):
        path = ("result", "features", position)
        if name in parts.logged[:position]:
            found.append((path, f"`{name}` is here twice"))
        elif name not in parts.features and name not in parts.broken:
            found.append((path, f"there is no feature `{name}`{did_you_mean(name, parts.features)}"))
    return found


def _check_decisions(parts: Parts) -> list[tuple[Path, str]]:
    decisions = parts.decisions
    found: list[tuple[Path, str]] = []
    if len(set(parts.classes)) < len(parts.classes):
        found.append((("classes",), "a class is here twice"))
    if not decisions:
        return found
    if len(decisions) == 1:
        found.append((("decisions",), "one decision decides nothing: add the one to take below `at_least`"))
    seen: set[str] = set()
    above: float | None = None
    last = len(decisions) - 1
    lookups = {name: lookup.fields for name, lookup in parts.lookups.items()}
    scope = Scope(parts.fields, lookups, tuple(parts.features), (), parts.broken, (), tuple(parts.classes))
    operations = 0
    for position, decision in enumerate(decisions):
        path = ("decisions", position)
        if decision.when is not None and position < last and len(found) <= MAX_PROBLEMS:
            try:
                if parts.complete:
                    operations += _condition(decision, scope).size
                else:  # which names there are is the model's to say
                    parse(decision.when)
            except ExpressionError as error:
                found.extend(((*path, "when"), line) for line in error.message.splitlines())
            if operations > MAX_OPERATIONS:
                found.append((path, f"the conditions up to this one come to more than {MAX_OPERATIONS:,} operations"))
                break
        if decision.decision in seen:
            found.append((path, f"the decision `{decision.decision}` is here twice"))
        seen.add(decision.decision)
        threshold = decision.at_least
        if position == last:
            if threshold is not None and last:
                found.append((path, "the last decision is for all lower scores: leave its `at_least` out"))
            elif decision.when is not None and last:
                found.append((path, "the last decision is for all the rest: leave its `when` out"))
        elif decision.when is not None:
            if threshold is not None:
                found.append(
                    (path, f"`at_least` and `when` are two conditions: write `when: score >= {threshold:g} and …`")
                )
        elif threshold is None:
            found.append((path, "only the last decision, for all lower scores, can be without `at_least`, or `when`"))
        elif above is not None and threshold >= above:
            found.append(
                (path, f"`at_least: {threshold:g}` is not below the {above:g} before it: decisions go from high to low")
            )
        above = threshold if threshold is not None else above
    return found
