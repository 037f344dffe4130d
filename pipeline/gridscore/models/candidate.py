"""A model on its way into the registry: read from wherever it is, and passed by every check that needs no cluster.

And what may be known of it before: the features that a job without any has from it.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from pydantic import TypeAdapter, ValidationError

from gridscore.errors import ModelError, UsageError
from gridscore.features import booster_of, parameters_of
from gridscore.features.baseline import MAX_BYTES
from gridscore.features.definitions import TRAINING, Training
from gridscore.grid.records import MAX_RECORD, record_text
from gridscore.job.completion import complete
from gridscore.job.types import FeatureName
from gridscore.models.description import NAMES_HINT, describe_document
from gridscore.models.document import SAVE_HINT, read_document
from gridscore.models.fit import PROBABILITY, check_jobs
from gridscore.models.loaded import LoadedModel
from gridscore.models.signing import sign
from gridscore.models.version import CHUNK, MAX_SIZE, ModelVersion, signature
from gridscore.texts import moment_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gridscore.job import Job
    from gridscore.models.description import Description

_MAX_METRICS = 100
_MAX_TRAINING = 2 * MAX_BYTES  # characters of what is known of the training: whoever lists versions reads it
_MAX_RECORD = MAX_RECORD - 1_000  # a signature comes on top


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model that may be pushed."""

    payload: bytes
    version: ModelVersion  # what will be known of it; its number is not given yet
    model: LoadedModel
    content: str  # SHA-256 over bytes and categories: two pushes of one content are one version

    @classmethod
    def check(
        cls,
        model: Any,
        name: str,
        *,
        metrics: Mapping[str, float] | None = None,
        categories: Mapping[str, Sequence[str]] | None = None,
        jobs: Mapping[str, Job] | None = None,
        allow_changed: bool = False,
        source: str = "",
    ) -> Candidate:
        """Read a model and check it in every way that a worker would. Takes a while: not for the event loop.

        Raises ModelError if it is not a model that Gridscore can score with, or not for the features of the jobs;
        UsageError if the metrics are not numbers.
        """
        payload, called, parameters = read_model(model)
        if len(payload) > MAX_SIZE:
            raise _too_large(called, len(payload))
        document = read_document(payload, called)
        description = describe_document(document, len(payload), called)
        features, chosen, definitions = signature(description, categories, called)
        _check_names(features, called)
        training = _training(description.attributes.get(TRAINING), parameters, called)
        _check_labels((training or {}).get("labels", ()), description, called)
        sha256 = hashlib.sha256(payload).hexdigest()
        try:
            version = msgspec.convert(
                {
                    "name": name,
                    "version": 1,
                    "sha256": sha256,
                    "size": len(payload),
                    "chunks": -(-len(payload) // CHUNK),
                    "features": features,
                    "feature_types": description.feature_types,
                    "categories": chosen,
                    "definitions": definitions,
                    "objective": description.objective,
                    "outputs": description.outputs,
                    "classes": description.classes,
                    "trees": description.trees,
                    "rounds": description.rounds,
                    "best_iteration": description.best_iteration,
                    "xgboost_version": description.xgboost_version,
                    "metrics": check_metrics(metrics or {}),
                    "training": training,
                    "source": source,
                    "created_at": moment_text(),
                },
                ModelVersion,
            )
        except msgspec.ValidationError as error:
            raise ModelError(f"{called} cannot be kept in the registry: {error}.") from None
        check_jobs(jobs, version, allow_changed=allow_changed, called=called)
        if (known := len(record_text(version.to_json()).encode())) > _MAX_RECORD:
            raise ModelError(
                f"What {called} says of its columns has {known:,} bytes; the limit is {_MAX_RECORD:,}.",
                "Let fewer features have categories or encodings, or make their texts shorter.",
            )
        loaded = LoadedModel.prepare(version, payload, document, description, called)
        texts = msgspec.json.encode(chosen, order="deterministic")
        content = hashlib.sha256(sha256.encode() + texts).hexdigest()
        return cls(payload, version, loaded, content)

    def signed(self, key_file: Path, password: str | None) -> Candidate:
        """The same, signed: another version than one that is not.

        Raises UsageError if the file is not a key that can sign.
        """
        signature = sign(self.version, key_file, password)
        content = hashlib.sha256(f"{self.content} {signature}".encode()).hexdigest()
        return replace(self, version=msgspec.structs.replace(self.version, signature=signature), content=content)

    def metadata(self) -> dict[str, Any]:
        """What the grid keeps beside the bytes; name and number are in its key and in the model's record."""
        return {key: value for key, value in self.version.to_json().items() if key not in ("name", "version")}


def read_model(model: Any) -> tuple[bytes, str, dict[str, str]]:
    """The bytes of a model, what to call it in messages, and its hyper-parameters as far as they are not in the bytes.

    Of an estimator that stopped early, the rounds up to the best one, which are those that it predicts with.

    `model`: a path, bytes, a Booster, or an estimator of `xgboost.sklearn`. Raises ModelError if there is no such file,
    it is too large, this is not a model at all, or is an estimator that takes another number than NaN for missing.
    """
    if isinstance(model, bytes | bytearray | memoryview):
        return bytes(model), "The model", {}
    if isinstance(model, str | Path):
        path = Path(model)
        try:
            if path.is_dir():
                raise ModelError(f"{path} is a folder, not a model file.", SAVE_HINT)
            if (size := path.stat().st_size) > MAX_SIZE:
                raise _too_large(str(path), size)
            return path.read_bytes(), str(path), {}
        except FileNotFoundError:
            raise ModelError(f"There is no file {path}.", SAVE_HINT) from None
        except OSError as error:
            raise ModelError(f"{path} cannot be read: {error.strerror}.", SAVE_HINT) from None
    import xgboost

    booster = booster_of(model)
    try:
        if isinstance(booster, xgboost.Booster):
            parameters = parameters_of(booster)
            best = booster.attr("best_iteration")
            is_estimator = booster is not model and model.booster != "gblinear"  # which predicts with all rounds
            if is_estimator and best is not None and best.isdecimal():
                booster = booster[: int(best) + 1]
            return bytes(booster.save_raw("ubj")), "The model", parameters
    except xgboost.core.XGBoostError as error:
        raise ModelError(f"The model cannot be saved: {error}", "Fit it first.") from None
    raise ModelError(
        f"A {type(model).__name__} is not a model that Gridscore accepts.",
        "Give an XGBoost Booster, or the path of a file that `booster.save_model('model.ubj')` wrote.",
    )


def _training(attached: str | None, parameters: Mapping[str, str], called: str) -> dict[str, Any] | None:
    """What is known of the training; of what was attached and what the process knows, the former."""
    if attached is not None and len(attached) > _MAX_TRAINING:
        raise ModelError(f"The attribute `{TRAINING}` of {called} has more than {_MAX_TRAINING:,} characters.")
    try:
        training = msgspec.json.decode(attached, type=Training) if attached is not None else Training()
    except (msgspec.DecodeError, UnicodeError) as error:
        raise ModelError(
            f"The attribute `{TRAINING}` of {called} is not valid: {error}.",
            "Let `OfflineMatrix.attach(booster)` write it.",
        ) from None
    plain: dict[str, Any] = msgspec.to_builtins(training)
    if not training.parameters and parameters:
        plain["parameters"] = dict(parameters)
    return plain or None


def _check_labels(labels: Sequence[str], description: Description, called: str) -> None:
    """Refuse names of classes that the model does not have."""
    is_probability = description.outputs == 1 and description.objective in PROBABILITY
    classes = description.classes or (2 if is_probability else 0)
    if labels and (len(labels) != classes or len(set(labels)) != classes):
        raise ModelError(
            f"{called} has {classes or 'no'} classes, and {len(labels)} labels for them ({', '.join(labels[:5])}).",
            "Attach a label for each class: `matrix.attach(booster, labels=encoder.classes_)`.",
        )


def _check_names(features: Sequence[str], source: str) -> None:
    """Refuse names that no job file can have: no job could ever score with the model."""
    adapter = TypeAdapter(FeatureName)
    for name in features:
        try:
            adapter.validate_python(name)
        except ValidationError as error:
            problem = error.errors(include_input=False)[0]["msg"].removeprefix("Value error, ")
            raise ModelError(
                f"{source} has a feature `{name}` that no job file can name: {problem}.", NAMES_HINT
            ) from None


def check_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics as plain floats. Raises UsageError if one is not a number, or there are too many."""
    if len(metrics) > _MAX_METRICS:
        raise UsageError(f"{len(metrics)} metrics are more than {_MAX_METRICS}.")
    found = {}
    for name, value in metrics.items():
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number) or not name:
            raise UsageError(f"The metric `{name}` is `{value}`, which is not a number.", "Write `auc=0.93`.")
        found[str(name)] = number
    return found


def _too_large(source: str, size: int) -> ModelError:
    return ModelError(
        f"{source} has {size:,} bytes; the limit is {MAX_SIZE:,} (1 GiB).",
        "Train fewer or shallower trees, or save it as UBJ, which is smaller than JSON.",
    )


def completed(job: Job, version: ModelVersion) -> Job:
    """The job with the version's features, each read from the event as it is, if it names none itself.

    And with the version's labels as its `classes`, if it names neither.

    Raises JobFileError if these features cannot be read from an event.
    """
    trained = {} if version.definitions is None else version.definitions.fields
    made = complete(job, version.features, version.feature_types, version.categories, trained)
    if not job.is_complete and version.labels and not job.classes:
        return made.model_copy(update={"classes": version.labels})
    return made


def version_in(model: Any, name: str) -> ModelVersion:
    """What the registry would know of a model that is not in it: as `loaded_from`."""
    return loaded_from(model, name)[0]


def loaded_from(model: Any, name: str) -> tuple[ModelVersion, LoadedModel]:
    """The same and the model itself, loaded, of one that is not in the registry, with every check of a push.

    Takes a while.

    `model`: what `Registry.push` takes; `name`: of the model. Raises ModelError if it is not a model that Gridscore can
    score with.
    """
    candidate = Candidate.check(model, name)
    return candidate.version, candidate.model
