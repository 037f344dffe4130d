"""Time zones as the package `tzdata` has them, and never as the system does: training and worker see the same."""

from __future__ import annotations

import re
import zoneinfo
from functools import cache
from importlib import metadata, resources

from gridscore.errors import ExpressionError

# Files beside the time zones: what a machine is set to, and what it was delivered with.
_NOT_ZONES = frozenset(("localtime", "Factory"))


@cache
def zone_names() -> frozenset[str]:
    return frozenset(resources.files("tzdata").joinpath("zones").read_text("ascii").split()) - _NOT_ZONES


@cache
def zone(name: str) -> zoneinfo.ZoneInfo:
    """A time zone. Raises ExpressionError if there is none of this name."""
    if not re.fullmatch(r"[A-Za-z0-9_+/-]{1,64}", name) or name not in zone_names():
        raise ExpressionError(f"there is no time zone `{name[:64]}`")
    with resources.files("tzdata").joinpath("zoneinfo", *name.split("/")).open("rb") as file:
        return zoneinfo.ZoneInfo.from_file(file, key=name)


def release() -> str:
    """The release of the time zone database, as `2026.1`."""
    return metadata.version("tzdata")
