"""Kinds of sources and sinks: where settings and code of each are, imported only when that kind is used."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from gridscore.errors import UsageError
from gridscore.job.plugs.base import SinkSettings, SourceSettings
from gridscore.job.plugs.environment import from_environment

if TYPE_CHECKING:
    from gridscore.grid import Grid
    from gridscore.job.plugs.sections import Side

_Settings = TypeVar("_Settings", SourceSettings, SinkSettings)
_Plug = TypeVar("_Plug")


@dataclass(frozen=True, slots=True)
class PlugKind:
    """One kind of source or sink.

    Attributes:
        name: What people call it.
        settings: Path of its settings model, `package.module:Class`.
        plug: Path of its class.
        summary: What it is for, one line.
        example: Options of its command that can work.
        extra: Of the distribution, that has its libraries; empty if it needs none.
    """

    name: str
    settings: str
    plug: str
    summary: str
    example: str = ""
    extra: str = ""

    @property
    def exists(self) -> bool:
        """Whether this version has it."""
        return find_spec(self.settings.partition(":")[0]) is not None

    def settings_class(self) -> Any:
        """Its settings model."""
        return _load(self.settings)

    def plug_class(self) -> Any:
        """Its class.

        Raises:
            UsageError: Its extra is not installed.
        """
        try:
            return _load(self.plug)
        except ModuleNotFoundError as error:
            if not self.extra or (error.name or "").partition(".")[0] == "gridscore":
                raise
            raise UsageError(
                f"`{self.name}` needs the extra `{self.extra}`: the module `{error.name}` is not installed.",
                f"pip install 'gridscore[{self.extra}]'",
            ) from None


class PlugKinds(Generic[_Settings, _Plug]):
    """All kinds of one side, by name. Nothing of a kind is imported before it is asked for.

    Args:
        side: What they are.
        kinds: In the order in which people shall see them.
    """

    def __init__(self, side: Side, kinds: tuple[PlugKind, ...]) -> None:
        self._side = side
        self._kinds = {kind.name: kind for kind in kinds}

    @property
    def available(self) -> list[str]:
        """Names of those that this version has."""
        return [name for name, kind in self._kinds.items() if kind.exists]

    def __getitem__(self, name: str) -> PlugKind:
        """A kind.

        Raises:
            UsageError: There is none of that name.
        """
        if name not in self._kinds:
            known = ", ".join(self.available)
            raise UsageError(f"There is no {self._side} `{name}`.", f"{self._side.title()}s are: {known}.")
        return self._kinds[name]

    def of(self, settings: _Settings) -> PlugKind:
        """The kind that settings are for: each plug's have a field for it, with one value."""
        return self[str(settings.kind)]  # type: ignore[attr-defined]

    def make(self, grid: Grid, name: str, settings: _Settings) -> _Plug:
        """A source or sink, not opened yet.

        Raises:
            UsageError: The libraries of its kind are not installed.
        """
        plug: _Plug = self.of(settings).plug_class()(grid, name, settings)
        return plug

    def check(self, settings: _Settings) -> None:
        """See that a source or sink can be made of settings, before anybody connects.

        Raises:
            SettingsError: An environment variable that they name is not set.
            UsageError: The libraries of its kind are not installed.
        """
        self.of(settings).plug_class()
        from_environment(settings)


def _load(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)
