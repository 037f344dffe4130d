"""Whether a version fits a job: the same features in the same order, of the same kind, made as training made them."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, cast

from gridscore.errors import ModelMismatchError
from gridscore.features import definitions_of
from gridscore.features.definitions import same_definition
from gridscore.features.operations import number_text, parse_number
from gridscore.job.check import compile_decisions, compile_features
from gridscore.job.nodes import INTEGERS, find
from gridscore.job.types import Type
from gridscore.models.version import SHOWN, difference, listed, short

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from gridscore.job import Job
    from gridscore.job.nodes import Node
    from gridscore.models.version import ModelVersion

_WHOLE = re.compile("-?[1-9][0-9]*|0")
_MADE_SHOWN = 200


def check_fit(job: Job, version: ModelVersion, *, allow_changed: bool = False) -> None:
    """Refuse a version that would not score a job's events as it was trained.

    `allow_changed`: accept features that have the same names and kinds, but other definitions. Raises
    ModelMismatchError if the message shows what differs, feature by feature.
    """
    check_jobs({job.name: job}, version, allow_changed=allow_changed)


def check_jobs(
    jobs: Mapping[str, Job] | None, version: ModelVersion, *, allow_changed: bool = False, called: str = ""
) -> None:
    """The same for each of several jobs, by name; `called` is what a version without a number is called.

    Raises ModelMismatchError: for all that differ.
    """
    wrong: list[str] = []
    hint = ""
    for name, job in (jobs or {}).items():
        if tuple(job.feature_names) != version.features:
            lines, advice = difference(job.feature_names, version.features), _OTHER_FEATURES
        elif mismatches := _kind_mismatches(job, version):
            lines, advice = _listing(mismatches), _OTHER_KINDS
        elif problem := _single_output_problem(job, version):
            lines, advice = problem, _SEVERAL
        elif not allow_changed and (changes := changed_features(job, version)):
            lines, advice = _listing(changes), _CHANGED
        else:
            continue
        wrong.append(f"For the job `{name}`:\n{lines}")
        hint = hint or advice
    if wrong:
        raise ModelMismatchError(
            f"{called or _title(version)} would not score as it was trained.\n" + "\n".join(wrong), hint
        )


def fit_warnings(jobs: Mapping[str, Job], version: ModelVersion) -> list[str]:
    """Warnings about a version that may score for these jobs all the same."""
    making = [name for name, job in jobs.items() if not _takes_as_is(job)]
    if version.definitions is None and making:
        whose = "these jobs make" if len(making) > 1 else f"the job `{making[0]}` makes"
        text = (
            f"{_title(version)} does not say how its features were made, so it cannot be checked that "
            f"{whose} them the same way. `OfflineMatrix.attach(booster)` puts that into a model before it is saved."
        )
        return [text]
    return (
        []
        if version.definitions is None
        else [
            f"{_title(version)} was trained with a different {what} ({old}; here {new}): "
            + (
                "the function may return other values."
                if what.startswith("distribution")
                else "the last bits of features, or hours around clock changes, may differ."
            )
            for what, old, new in _other_machine(jobs, version)
        ]
        + [
            f"{_title(version)} was trained on features other than those of the job `{name}`: {'; '.join(changes[:3])}."
            for name, job in jobs.items()
            if (changes := changed_features(job, version))
        ]
    )


def _takes_as_is(job: Job) -> bool:
    """Whether each feature is the event's field of its name: training could not have made it otherwise."""
    fields = {kind.key(field): field for field, kind in job.schema_.items()}
    return all(
        name in fields and each.expression in (fields[name], f"category({fields[name]})") and each.default is None
        for name, each in job.features.items()
    )


def _other_machine(jobs: Mapping[str, Job], version: ModelVersion) -> list[tuple[str, str, str]]:
    trained = version.definitions.machine if version.definitions is not None else {}
    here = (
        {what: text for job in jobs.values() for what, text in definitions_of(job).machine.items()} if trained else {}
    )
    return [(what, trained[what], text) for what, text in here.items() if trained.get(what, text) != text]


def promotion_problems(jobs: Mapping[str, Job], version: ModelVersion) -> list[str]:
    """Why the version could not be promoted for these jobs, each with its hint."""
    try:
        check_jobs(jobs, version)
    except ModelMismatchError as error:
        return [str(error)]
    return []


def changed_features(job: Job, version: ModelVersion) -> list[str]:
    """How the features of a job, their fields and lookups are defined otherwise than in training; a line for each."""
    trained = version.definitions
    if trained is None:
        return []
    present = definitions_of(job)
    lines = []
    for what, before, now in (
        ("", trained.features, present.features),
        ("the type of the field ", trained.fields, present.fields),
        ("the key of the lookup ", trained.lookups, present.lookups),
        ("the window ", trained.windows, present.windows),
    ):
        for name, text in now.items():
            # What training did not use is used by a feature that has changed, and that is told of the feature.
            if not same_definition(old := before.get(name, text), text):
                lines.append(f"{what}`{short(name)}`: trained with `{old}`, the job has `{text}`")
    if not same_definition(trained.margin, present.margin):
        shown = [f"`{text}`" if text else "none" for text in (trained.margin, present.margin)]
        lines.append("the margin: trained with {}, the job has {}".format(*shown))
    if not lines and trained.fields:  # a name in an expression is a field if there is one, else an earlier feature
        lines += [
            f"the field `{short(name)}`: training {'read' if name in trained.fields else 'did not read'} it, "
            f"the job {'does not' if name in trained.fields else 'does'}"
            for name in sorted(trained.fields.keys() ^ present.fields.keys())
        ]
    return lines


_OTHER_FEATURES = (
    "Train on the matrix that `gridscore features` makes of the job file, or correct its features. Both change at once "
    "with `gridscore submit FILE --update --model MODEL`."
)
_OTHER_KINDS = (
    "Train on the matrix that `gridscore features` makes of the job file, or make these features as they were in "
    "training; `gridscore model push --categories` names the categories of a model that has only codes."
)
_SEVERAL = (
    "Train with an objective that gives one number, as `binary:logistic` for one class against the rest, or "
    "`multi:softmax` for the number of the class; or name all classes of the model in the job file (`classes`): with "
    "`multi:softprob` each has its score. "
    "Without `decisions` and `margin`, results have all scores, as a list."
)
_CHANGED = (
    "Train on the matrix that `gridscore features` makes of the job file. If you know that scores stay right: "
    "`--allow-changed-features`."
)


# Objectives that give one number: the probability of the second of two classes.
PROBABILITY = ("binary:logistic", "reg:logistic")


def _title(version: ModelVersion) -> str:
    return f"Version {version.version} of the model `{version.name}`"


def _kind_mismatches(job: Job, version: ModelVersion) -> list[str]:
    """Features that are numbers here and categories there, a line for each."""
    nodes = compile_features(job.features, job.schema_, job.lookups, job.windows)
    types = dict(zip(version.features, version.feature_types, strict=False))
    lines = []
    for name, node in nodes.items():
        texts, made = version.categories.get(name), f"`{short(str(job.features[name]), _MADE_SHOWN)}`"
        category, encoded = find(node, "category"), find(node, "encoded")
        problem = ""
        if encoded is not None and name not in version.learnt:
            problem = f"the model has not learnt its encoding: {made}"
        elif category is None:
            if texts is not None:
                problem = f"trained as a category ({listed(texts)}), the job makes a number of it: {made}"
            elif types.get(name) == "c" and not (_is_code(node, nodes, job) or _is_made_alike(name, job, version)):
                problem = f"trained as a category by codes, the job computes a number: {made}"
                if version.definitions is None:
                    problem += ", and the model does not say that training did the same: attach the matrix to it"
        elif texts is None:
            what = "a category of which the model has only codes" if types.get(name) == "c" else "a number"
            problem = f"trained as {what}, the job makes a category of texts: {made}"
        elif (op := category.args[0].op) in _NUMBERS_AS_TEXT and texts and not any(map(_NUMBERS_AS_TEXT[op], texts)):
            problem = f"trained as a category ({listed(texts)}), the job's are numbers: {made}"
            if not all(math.isnan(parse_number(text)) for text in texts):
                problem += ", which writes one as `1`, not as `1.0` or `01`"
        if problem:
            lines.append(f"`{short(name)}`: {problem}")
    return lines


def _single_output_problem(job: Job, version: ModelVersion) -> str:
    """What in a job needs one score per event, if the model gives several; empty if nothing does."""
    # `multi:softmax` gives one, but begins with a margin for each class.
    has_classes = version.objective.startswith("multi:")
    outputs = version.outputs or 1
    labels = version.labels
    if job.classes and labels and job.classes != labels:
        return f"  the job's `classes` are {listed(job.classes)}, the model was trained with {listed(labels)}"
    if job.classes and version.objective == "multi:softmax":
        if version.classes != len(job.classes):
            return f"  the job names {len(job.classes)} `classes`, the model has {version.classes}"
        if _uses_scores_of_classes(job):
            return "  a decision needs the score of a class (`score.NAME`), the model only says which class it is"
    elif job.classes:
        whole = outputs == len(job.classes) and has_classes
        if not whole and not (len(job.classes) == 2 and outputs == 1 and version.objective in PROBABILITY):
            gives = "one score" if outputs == 1 else f"{outputs:,} scores"
            # Two probabilities of two questions look like those of two classes, and are not.
            of_what = "" if outputs == 1 or has_classes else ", each of a target of its own: they are not classes"
            return (
                f"  the job names {len(job.classes)} `classes`, the model ({version.objective}) gives {gives} per event"
                f"{of_what}"
            )
    elif job.decisions and outputs > 1:
        return f"  `decisions` compare one score with thresholds, the model gives {outputs:,} scores per event"
    if job.margin is not None and (outputs > 1 or has_classes):
        return "  `margin` is one number, the model begins with one for each of its outputs"
    return ""


def _uses_scores_of_classes(job: Job) -> bool:
    conditions = compile_decisions(job.decisions, job.classes, job.features, job.schema_, job.lookups)
    waiting = list(conditions)
    while waiting:
        node = waiting.pop()
        if node.op == "score" and node.value is not None:
            return True
        waiting += node.args
    return False


def _is_code(node: Node, nodes: Mapping[str, Node], job: Job) -> bool:
    """Whether a value may be a code that the event, an entry or an earlier feature holds."""
    while node.op == "feature":
        node = nodes[str(node.value)]
    if node.op == "lookup":
        lookup, field = cast("tuple[str, str]", node.value)
        return job.lookups[lookup].fields[field].type == "int"
    return node.op in INTEGERS or find(node, "category") is not None or node.type == Type.UNKNOWN


def _is_made_alike(name: str, job: Job, version: ModelVersion) -> bool:
    """Whether training computed a number by the same expression: then it was that number which was the code."""
    if version.definitions is None or name not in version.definitions.features:
        return False
    return same_definition(version.definitions.features[name], definitions_of(job).features[name])


# Whether a text is one that the operation can make.
_NUMBERS_AS_TEXT: dict[str, Callable[[str], bool]] = {
    "string_of_int": lambda text: _WHOLE.fullmatch(text) is not None,
    "string_of_number": lambda text: number_text(parse_number(text)) == text,
}


def _listing(lines: Sequence[str]) -> str:
    more = [f"  … and {len(lines) - SHOWN:,} more"] if len(lines) > SHOWN else []
    return "\n".join([*(f"  {line}" for line in lines[:SHOWN]), *more])
