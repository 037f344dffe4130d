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
        settings: Path of its settings model, `package.module:Class`.
        plug: Path of its class, called with the connection, its name and its settings.
        extra: Of the distribution, which installs what it needs; empty if nothing but Gridscore is.
        summary: What it is for, one line.
    """

    settings: str
    plug: str
    extra: str = ""
    summary: str = ""

    @property
    def exists(self) -> bool:
        """Whether its settings can be imported."""
        return find_spec(self.settings.partition(":")[0]) is not None

    def settings_class(self) -> type[Any]:
        """Its settings model."""
        kind: type[Any] = _load(self.settings)
        return kind

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
                f"The kind `{self.plug.partition(':')[0].rpartition('.')[2]}` needs the extra `{self.extra}`: the "
                f"module `{error.name}` is not installed.",
                f"pip install 'gridscore[{self.extra}]'",
            ) from None


def _load(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)
