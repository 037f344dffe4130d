"""A job without features of its own, with those of a version of its model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gridscore.job.completion import complete
from gridscore.models.candidate import Candidate

if TYPE_CHECKING:
    from gridscore.job import Job
    from gridscore.models.loaded import LoadedModel
    from gridscore.models.version import ModelVersion


def completed(job: Job, version: ModelVersion) -> Job:
    """The job with the version's features, each read from the event as it is, if it names none itself.

    And with the version's labels as its `classes`, if it names neither.

    Raises:
        JobFileError: These features cannot be read from an event.
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

    Args:
        model: What `Registry.push` takes.
        name: Of the model.

    Raises:
        ModelError: It is not a model that Gridscore can score with.
    """
    candidate = Candidate.check(model, name, metrics=None, categories=None)
    return candidate.version, candidate.model
