"""The models room: the registry in the grid, and models ready to score.

`Registry` keeps versions and aliases, `ModelVersion` is what is known of a version, `check_fit` says whether it is
for a job, and `LoadedModel` scores with it.
"""

from pipeline.models.fit import check_fit
from pipeline.models.loaded import LoadedModel
from pipeline.models.registry import Added, Model, Registry
from pipeline.models.version import ModelVersion

__all__ = ["Added", "LoadedModel", "Model", "ModelVersion", "Registry", "check_fit"]
