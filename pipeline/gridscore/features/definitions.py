"""What a model's columns mean: names, categories, and how training has made each feature.

It travels with the model as an attribute of the Booster. All but categories and encodings is only ever compared with a
job, never computed with.
"""

from __future__ import annotations

import ast
import hashlib
from typing import TYPE_CHECKING, Annotated, cast

import msgspec
from msgspec import Meta

from gridscore.features import maths
from gridscore.features.baseline import Baseline  # noqa: TC001 -- msgspec reads the annotations
from gridscore.features.encodings import Encoding  # noqa: TC001 -- msgspec reads the annotations
from gridscore.features.program import returned_by
from gridscore.function_calls import distribution_of
from gridscore.job import zones
from gridscore.job.check import compile_features, compile_keys, compile_margin
from gridscore.job.nodes import find
from gridscore.job.syntax import parse
from gridscore.job.windows import call_of, calls_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from gridscore.features.encodings import Learnt
    from gridscore.job import Feature, FieldType, Job, Lookup, Window
    from gridscore.job.nodes import Node

# The attribute of a Booster, and the key in a Parquet file's metadata, that holds an :class:`Attribute`.
ATTRIBUTE = "gridscore"

# The attribute of a Booster that holds a :class:`Training`; one of its own, as earlier versions take no more in the
# other.
TRAINING = "gridscore_training"

# Characters of a definition that are kept to be shown; of longer ones a digest says whether they are the same.
_MAX_TEXT = 240

Text = Annotated[str, Meta(max_length=1_000)]
Texts = Annotated[dict[Text, Annotated[str, Meta(max_length=_MAX_TEXT + 40)]], Meta(max_length=20_000)]


class Definitions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How features are made."""

    features: Texts = {}  # the expression of each, in Python's own spelling, with its default
    # Types of the event fields and `lookup.field` that these use, with units and names in JSON where these are not the
    # default.
    fields: Texts = {}
    lookups: Texts = {}  # the key by which each lookup that they use is asked
    # The expression of the margin, with its default; empty if there is none.
    margin: Annotated[str, Meta(max_length=_MAX_TEXT + 40)] = ""
    windows: Texts = {}  # whose events each window holds that they use, and what orders them
    # What was computed by, as far as features depend on it: a digest of the C library's functions, the release of the
    # time zones, and the distributions that have Python functions.
    machine: Texts = {}
    # What training has learnt for `target` and its like, by feature.
    encodings: Annotated[dict[Text, Encoding], Meta(max_length=1_000)] = {}


class Attribute(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What training knew of a matrix and XGBoost has no place for."""

    features: Annotated[tuple[Text, ...], Meta(min_length=1, max_length=100_000)]  # names in the order of the columns
    categories: dict[str, tuple[Text, ...]] = {}  # texts in the order of their codes, by feature
    margin: Annotated[str, Meta(max_length=10_000)] = ""  # expression of the margin; empty if there is none
    # How the features were made; None where an earlier version of Gridscore attached it.
    definitions: Definitions | None = None

    @property
    def learnt(self) -> dict[str, Learnt]:
        """Categories and encodings, by feature."""
        return learnt_of(self.categories, self.definitions)


Parameter = Annotated[str, Meta(max_length=100)]


class Training(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a model learnt from, and how."""

    # Of the matrix: names, values and margins, not the labels; empty if nobody attached it.
    sha256: Annotated[str, Meta(pattern="^([0-9a-f]{64})?$")] = ""
    rows: Annotated[int, Meta(ge=0, lt=2**53)] = 0
    # Hyper-parameters as XGBoost names them.
    parameters: Annotated[dict[Parameter, Parameter], Meta(max_length=200)] = {}
    # Names of the classes in the order of their numbers; empty if nobody attached them.
    labels: Annotated[tuple[Annotated[str, Meta(min_length=1, max_length=200)], ...], Meta(max_length=1_000)] = ()
    baseline: Baseline | None = None  # what it has seen, to tell drift; None if nobody attached it


def learnt_of(categories: Mapping[str, Sequence[str]], definitions: Definitions | None) -> dict[str, Learnt]:
    """What training has learnt, by feature: what a `FeaturePlan` computes with."""
    return {**categories, **(definitions.encodings if definitions is not None else {})}


def fingerprints_of(definitions: Definitions | None) -> dict[str, str]:
    """Fingerprints of encodings, by feature."""
    found = definitions.encodings if definitions is not None else {}
    return {name: encoding.fingerprint for name, encoding in found.items()}


def definitions_of(job: Job) -> Definitions:
    """How a job makes its features."""
    nodes = [*compile_features(job.features, job.schema_, job.lookups, job.windows).values()]
    calls = [call_of(node) for node in calls_of(nodes)]
    windows = {call.window for call in calls}
    if job.margin is not None:
        nodes.append(compile_margin(job.margin, job.features, job.schema_, job.lookups))
    used = set(_inputs(nodes))
    lookups = {lookup for lookup, _ in used if lookup}
    keys = [compile_keys(job.lookups[name], job.schema_) for name in lookups]
    keys += [compile_keys(job.windows[name], job.schema_) for name in windows]
    used |= {each for key in keys for each in _inputs(key)}
    ends = {name: valid_to for name in lookups if (valid_to := job.lookups[name].valid_to) is not None}
    used.update(ends.items())
    if windows or ends:
        used.add(("", str(job.order_by)))
    return Definitions(
        features={name: _made(each) for name, each in job.features.items()},
        fields=_field_texts(job, used),
        lookups={
            name: _key(job.lookups[name]) + (f", until {ends[name]}" if name in ends else "")
            for name in sorted(lookups)
        },
        margin="" if job.margin is None else _made(job.margin),
        windows={
            name: f"{_key(job.windows[name])}, ordered by {job.order_by}, lateness {job.lateness_seconds:g} s"
            for name in sorted(windows)
        },
        machine=_machine(nodes, decays=any(call.function == "decayed" for call in calls)),
    )


def window_fields(job: Job, nodes: Iterable[Node]) -> dict[str, str]:
    """The fields of events that some of what windows hold, or their keys, depend on, as they are declared."""
    return _field_texts(job, {("", str(job.order_by)), *_inputs(nodes)})


def looked_up_by(job: Job) -> dict[str, set[str]]:
    """The lookups that each feature depends on, if only by way of a feature further up."""
    found: dict[str, set[str]] = {}
    for name, node in compile_features(job.features, job.schema_, job.lookups, job.windows).items():
        others = (str(each.value) for each in _nodes([node]) if each.op == "feature")
        found[name] = {lookup for lookup, _ in _inputs([node]) if lookup}.union(*(found[other] for other in others))
    return found


def same_definition(old: str, new: str) -> bool:
    """Whether two texts of definitions mean the same: `1` is `1.0`, and a list is a tuple."""
    return old == new or (_normal(old) == _normal(new) is not None)


def _normal(text: str) -> tuple[str, str] | None:
    expression, _, default = text.partition(", default ")
    try:
        first, second = (
            ast.dump(_Normal().visit(ast.parse(part or "None", mode="eval"))) for part in (expression, default)
        )
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return first, second


class _Normal(ast.NodeTransformer):
    def visit_Constant(self, node: ast.Constant) -> ast.Constant:
        value = node.value
        if isinstance(value, float) and abs(value) < 2**53 and value.is_integer():
            value = int(value)
        return ast.Constant(value)

    def visit_Tuple(self, node: ast.Tuple) -> ast.AST:
        return self.generic_visit(ast.List(node.elts, node.ctx))


def _field_texts(job: Job, used: Iterable[tuple[str, str]]) -> dict[str, str]:
    """How the job declares fields of the event and of lookups; whether they may be missing does not matter."""
    fields: dict[str, str] = {}
    for lookup, name in sorted(used):
        if lookup:
            field = job.lookups[lookup].fields[name]
            fields[f"{lookup}.{name}"] = _kept(_field_text(name, field) + _default(field.default))
        else:
            array, _, part = name.partition(".")
            kind, of = job.schema_[array], ""
            if part or "" in kind.of:
                of = f" of {_field_text(part, kind.of[part])}"
            fields[name] = _kept(_field_text(array, kind) + of)
    return fields


def _field_text(name: str, field: FieldType) -> str:
    unit = f", unit {field.unit}" if field.type == "timestamp" and field.unit != "iso" else ""
    return field.type + unit + (f", json {field.json_name!r}" if field.json_name not in ("", name) else "")


def _key(of: Lookup | Window) -> str:
    return _kept(of.separator.join(map(_spelled, of.key)))


def _machine(nodes: Sequence[Node], *, decays: bool) -> dict[str, str]:
    found = {}
    if decays or any(find(node, op) for node in nodes for op in (*maths.NAMES, "power", "haversine")):
        found["maths library"] = maths.digest()
    if any(find(node, "local") for node in nodes):
        found["time zone release"] = zones.release()
    for target in sorted({str(node.value[0]) for node in returned_by(nodes)}):  # type: ignore[index]
        if version := distribution_of(target):
            found[f"distribution of `{target}`"] = _kept(version)
    return found


def _made(feature: Feature) -> str:
    return _kept(feature.spelled(_spelled) + _default(feature.default))


def _nodes(roots: Iterable[Node]) -> Iterator[Node]:
    """Everything that expressions are made of, once."""
    waiting, seen = list(roots), set()
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            waiting += node.args
            yield node


def _inputs(nodes: Iterable[Node]) -> Iterator[tuple[str, str]]:
    """Lookup (empty for the event) and field of everything that expressions read."""
    for node in _nodes(nodes):
        if node.op in ("field", "int_field"):
            yield "", str(node.value)
        elif node.op in ("item", "int_item", "array"):
            name, part, _ = cast("tuple[str, str, object]", node.value)
            yield "", f"{name}.{part}" if part else name
        elif node.op == "lookup":
            yield cast("tuple[str, str]", node.value)


def _spelled(text: str) -> str:
    """An expression without what does not matter: spaces, parentheses, kinds of quotes."""
    return ast.unparse(parse(text))


def _default(value: object) -> str:
    return "" if value is None else f", default {value!r}"


def _kept(text: str) -> str:
    if len(text) <= _MAX_TEXT:
        return text
    return f"{text[:_MAX_TEXT]}… (sha256 {hashlib.sha256(text.encode()).hexdigest()[:16]})"
