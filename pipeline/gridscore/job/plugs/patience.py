"""How long a source or a sink that has worked bears being refused: what was right once may be right again.

A user is made anew, a database is restored, one broker of several has not heard of a password yet: to end then would
take somebody to start it again. One that has never worked is refused for good, and at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gridscore.errors import RefusedError

if TYPE_CHECKING:
    from gridscore.errors import GridscoreError
    from gridscore.grid import Grid

PATIENCE_SECONDS = 600.0  # how long refusals may go on
# Without a refusal for so long, which is more than any pause between two attempts, the next is the first again.
_CALM_SECONDS = 120.0


class Patience:
    """Of one process. `interrupted`: the error of an other side that is away, or refuses for now."""

    def __init__(self, grid: Grid, interrupted: type[GridscoreError]) -> None:
        self._grid, self._interrupted = grid, interrupted
        self._worked = False
        self._first: float | None = None
        self._last = 0.0

    def opened(self) -> None:
        """The other side has let us in, though it may refuse what we ask next."""
        self._worked = True

    def succeeded(self) -> None:
        self._worked, self._first = True, None

    def may_heal(self, error: Exception) -> bool:
        """Whether a retry may help: the other side is away, or the cluster does not answer."""
        if isinstance(error, RefusedError):
            return self.lasts()
        return isinstance(error, self._interrupted) or self._grid.may_recover_from(error)

    def lasts(self) -> bool:
        """We are refused: whether to try again."""
        now = self._grid.clock()
        if self._first is None or now - self._last > _CALM_SECONDS:
            self._first = now
        self._last = now
        return self._worked and now - self._first < PATIENCE_SECONDS
