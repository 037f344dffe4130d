"""A release: a revision of a job that goes live together with a version of its model.

Job and model are two records of the grid, and only one can be changed at a time. So the job's names the version that
its revision goes live with; that is the commit. The alias follows: whoever submitted moves it, or else a worker. Until
then the version stands for what the alias is about to point at. A worker of the revision before takes no version that
the alias moved to without a look at the job's record, which has changed before.

Completing a release is always a move of the alias, and whoever changes the job first completes the release before: a
late attempt to complete an older one therefore finds another last move, and does nothing.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

Version = Annotated[int, Meta(ge=1, le=2**31)]


class Release(msgspec.Struct, frozen=True):
    """What a revision goes live with."""

    version: Version  # of the model
    # The alias's last move before the release; once it has moved on, the alias alone says which version.
    after: Annotated[str, Meta(max_length=1_000)] = ""


class Previous(msgspec.Struct, frozen=True):
    """What a revision has replaced."""

    spec: dict[str, Any]  # the job
    version: Version | None = None  # of the model that scored for it; None if the model was not exchanged with it
