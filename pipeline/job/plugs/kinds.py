"""A kind of source or sink: where its settings and its code are, imported only when somebody wants that kind."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from pipeline.errors import UsageError


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

    def make(self, grid: Any, name: str, settings: Any) -> Any:
        """One of its kind, not opened yet.

        Raises:
            UsageError: Its extra is not installed.
        """
        return self.plug_class()(grid, name, settings)

    def plug_class(self) -> Any:
        """Its class.

        Raises:
            UsageError: Its extra is not installed.
        """
        try:
            return _load(self.plug)
        except ModuleNotFoundError as error:
            if not self.extra or (error.name or "").partition(".")[0] == "pipeline":
                raise
            raise UsageError(
                f"`{self.name}` needs the extra `{self.extra}`: the module `{error.name}` is not installed.",
                f"pip install 'gridscore[{self.extra}]'",
            ) from None


def _load(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)
