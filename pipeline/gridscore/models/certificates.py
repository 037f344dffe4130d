"""Parity certificates: whether what a version gave live was what it gives offline, the last one of each job.

They are in the map `gridscore.parity`, under `model/version/job`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import msgspec

from gridscore.grid import Records
from gridscore.grid.records import Count, parsed
from gridscore.models.version import Positive, Text  # noqa: TC001 -- msgspec reads the annotations

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gridscore.grid import Grid

PARITY_MAP = "gridscore.parity"

MOST = 20  # certificates of a model and job: whoever asks for the status of a job reads all


class Certificate(msgspec.Struct, frozen=True, kw_only=True):
    """What a comparison has shown."""

    model: Text
    version: Positive
    job: Text
    revision: Count
    at: Text  # when it was compared, RFC 3339 in UTC
    # What was compared: `live`, the results of workers; or `here`, before the version has any, what the worker's code
    # gives in the process that compared.
    served: Literal["live", "here"]
    equal: Count = 0  # events whose results have the same bits
    different: Count = 0  # events whose results have others
    unclear: Count = 0  # events whose results have others, and whose lookups may have changed since
    # Of each feature that results carry: on how many events it was equal, and was compared.
    features: dict[str, tuple[Count, Count]] = {}
    difference: Text = ""  # the first difference, in a sentence; empty if there is none

    @property
    def key(self) -> str:
        return f"{self.model}/{self.version}/{self.job}"

    def is_of(self, model: str, version: int) -> bool:
        return (self.model, self.version) == (model, version)

    @property
    def text(self) -> str:
        """What it says, for people: `20,000 of 20,000 equal`."""
        unclear = f", {self.unclear:,} cannot be told" if self.unclear else ""
        before = ", before it scored" if self.served == "here" else ""
        return f"{self.equal:,} of {self.equal + self.different + self.unclear:,} equal{unclear}{before}"

    def to_json(self) -> dict[str, Any]:
        """For scripts, and for the grid."""
        return dict(msgspec.to_builtins(self))


async def certificates_of(grid: Grid) -> list[Certificate]:
    """All that there are, the oldest first. What is not one is noted as a bad record."""
    found = await Records(grid, PARITY_MAP).read(parsed(Certificate))
    return sorted(found.values(), key=lambda each: each.at)


async def keep(grid: Grid, certificate: Certificate) -> None:
    """Store one in the place of the last of its version and job. Of a model and job, the last few are kept."""
    await Records(grid, PARITY_MAP).put(certificate.key, certificate.to_json())
    same = [
        each for each in await certificates_of(grid) if (each.model, each.job) == (certificate.model, certificate.job)
    ]
    await forget(grid, same[:-MOST])


async def forget(grid: Grid, certificates: Iterable[Certificate]) -> None:
    for each in certificates:
        await Records(grid, PARITY_MAP).delete(each.key)
