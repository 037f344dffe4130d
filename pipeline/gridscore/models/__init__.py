"""The models room: the registry in the grid, and models ready to score.

`Registry` keeps versions and aliases, `ModelVersion` is what is known of a version, `check_fit` says whether it is
for a job, `completed` gives a job without features its model's, and `LoadedModel` scores.
"""

from gridscore.models.candidate import completed, loaded_from, version_in
from gridscore.models.fit import check_fit
from gridscore.models.loaded import LoadedModel
from gridscore.models.registry import Added, Model, Registry
from gridscore.models.version import ModelVersion

__all__ = [
    "Added",
    "LoadedModel",
    "Model",
    "ModelVersion",
    "Registry",
    "check_fit",
    "completed",
    "loaded_from",
    "version_in",
]
