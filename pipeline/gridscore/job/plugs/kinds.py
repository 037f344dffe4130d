"""Kinds of sources and sinks: found by the entry points of distributions, and imported only when a kind is used.

A distribution adds a source by an entry point of the group `gridscore.sources`, a sink by one of `gridscore.sinks`: its
name is the kind, and it names a `PlugKind`. Ours are in `pyproject.toml`, and go before others of the same name; of two
others, neither is used.
"""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from gridscore.errors import UsageError, missing_extra
from gridscore.job.plugs.base import SinkSettings, SourceSettings
from gridscore.job.plugs.environment import from_environment
from gridscore.job.types import MAX_NAME

if TYPE_CHECKING:
    from gridscore.grid import Grid

Side = Literal["source", "sink"]

_OURS = "gridscore"

_Settings = TypeVar("_Settings", SourceSettings, SinkSettings)
_Plug = TypeVar("_Plug")


@dataclass(frozen=True, slots=True)
class PlugKind:
    """One kind of source or sink."""

    name: str  # what people call it
    settings: str  # path of its settings model, `package.module:Class`
    plug: str  # path of its class
    summary: str  # what it is for, one line
    example: str = ""  # options of its command that can work
    extra: str = ""  # of the distribution, that has its libraries; empty if it needs none
    distribution: str = _OURS  # that it is installed with

    def settings_class(self) -> Any:
        """Its settings model. Raises UsageError if it cannot be loaded, or is of another kind."""
        try:
            found = _load(self.settings)
            kind = found.model_fields["kind"].default
        except Exception as error:
            raise _not_loaded(self.name, self.distribution, repr(error)) from error
        if kind != self.name:
            raise _not_loaded(self.name, self.distribution, f"its settings are of the kind `{kind}`")
        return found

    def plug_class(self) -> Any:
        """Its class. Raises UsageError if its extra is not installed."""
        try:
            return _load(self.plug)
        except ModuleNotFoundError as error:
            if not self.extra or (error.name or "").partition(".")[0] == self.plug.partition(".")[0]:
                raise
            raise missing_extra(f"`{self.name}`", self.extra, error, self.distribution) from None


@functools.cache
def _entry_points(side: Side) -> dict[str, list[EntryPoint]]:
    """By name, ours alone where we have one of it."""
    found: dict[str, list[EntryPoint]] = {}
    for each in entry_points(group=f"{_OURS}.{side}s"):
        found.setdefault(each.name, []).append(each)
    return {
        name: [each for each in several if _brought_by(each) == _OURS] or several for name, several in found.items()
    }


def _brought_by(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else entry.value


def _not_loaded(name: str, distribution: str, why: str) -> UsageError:
    return UsageError(
        f"`{name}` of the distribution `{distribution}` cannot be loaded: {why}.",
        f"Install `{distribution}` again, or remove it.",
    )


class PlugKinds(Generic[_Settings, _Plug]):
    """All kinds of one side, by name. Nothing of a kind is imported before it is asked for."""

    def __init__(self, side: Side) -> None:
        self.side = side

    @property
    def available(self) -> list[str]:
        """Names of those that are installed."""
        return sorted(_entry_points(self.side))

    def __getitem__(self, name: str) -> PlugKind:
        """A kind.

        Raises UsageError if there is none of that name, several distributions bring it, or it cannot be loaded.
        """
        side, entries = self.side, _entry_points(self.side).get(name)
        if entries is None:
            there = ", ".join(self.available)
            known = f"{side.title()}s are: {there}." if there else "Install `gridscore` again."
            raise UsageError(f"There is no {side} `{name}`.", known)
        entry, *others = entries
        if others:
            both = " and ".join(sorted(f"`{_brought_by(each)}`" for each in entries))
            raise UsageError(
                f"The {side} `{name}` is brought by more than one distribution: {both}.", "Keep one of them."
            )
        try:
            found = entry.load()
        except Exception as error:
            raise _not_loaded(name, _brought_by(entry), repr(error)) from error
        if not isinstance(found, PlugKind) or found.name != name:
            raise _not_loaded(name, _brought_by(entry), f"`{entry.value}` is not a PlugKind of that name")
        return found

    def of(self, settings: _Settings) -> PlugKind:
        """The kind that settings are for: each plug's have a field for it, with one value."""
        return self[str(settings.kind)]  # type: ignore[attr-defined]

    def name_of(self, settings: _Settings, name: str | None = None) -> str:
        """The name of a source or sink: from its settings, as given, or from its kind and its map."""
        map_name = settings.to if isinstance(settings, SourceSettings) else settings.results
        return settings.name or name or f"{self.of(settings).name}-{map_name}".replace(":", "-")[:MAX_NAME]

    def make(self, grid: Grid, name: str, settings: _Settings) -> _Plug:
        """A source or sink, not opened yet. Raises UsageError if the libraries of its kind are not installed."""
        plug: _Plug = self.of(settings).plug_class()(grid, name, settings)
        return plug

    def check(self, settings: _Settings) -> None:
        """See that a source or sink can be made of settings, before anybody connects.

        Raises SettingsError if an environment variable that they name is not set; UsageError if the libraries of its
        kind are not installed.
        """
        self.of(settings).plug_class()
        from_environment(settings)


def _load(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)
