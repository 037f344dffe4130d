"""Rows of a PostgreSQL query for a load: read once, in order, numbered."""

from __future__ import annotations

import datetime as dt
import decimal
from typing import TYPE_CHECKING, Any, Self

import msgspec

from gridscore.errors import GridError, GridscoreError, UsageError
from gridscore.job.plugs.environment import from_environment
from gridscore.sources.base import SourceInterruptedError
from gridscore.sources.tables import BadRow, Row, RowMaker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from gridscore.grid import Grid

_decode = msgspec.json.Decoder(float_hook=decimal.Decimal).decode  # floats would lose digits
# Converts JSON to what a typed file would have in such a column.
_PYTHON: dict[str, Callable[[Any], Any]] = {
    "real": float,
    "double precision": float,
    "timestamp without time zone": dt.datetime.fromisoformat,
    "timestamp with time zone": dt.datetime.fromisoformat,
}


class QueryRows:
    """A query's rows. An asynchronous context manager: connected within it.

    Args:
        database: Address of the database; `${NAME}` in it is taken from the environment.
        how: As for :class:`gridscore.sources.tables.RowMaker`. Without conversions, rows are as the server writes them.

    Raises:
        UsageError: Settings are not valid, or the extra `postgres` is not installed.
    """

    def __init__(self, grid: Grid, query: str, database: str, to: str, key: Sequence[str], **how: Any) -> None:
        from pydantic import ValidationError

        from gridscore.sources.base import KINDS
        from gridscore.sources.postgres.settings import PostgresSourceSettings

        try:
            settings = PostgresSourceSettings(
                to=to, database=database, query=query, key=tuple(key), separator=how.get("separator", "|")
            )
        except ValidationError as error:
            detail = error.errors(include_url=False, include_input=False)[0]
            raise UsageError(f"{detail['loc'][0] if detail['loc'] else 'The query'}: {detail['msg']}.") from None
        settings, self._hidden = from_environment(settings)
        self._source: Any = KINDS.make(grid, "load", settings)
        self._maker = RowMaker("The query", key, **how) if how.get("parts") or how.get("values") else None

    async def __aenter__(self) -> Self:
        try:
            await self._source.open()
            if self._maker is not None:
                self._maker.look_for_columns(list(self._source.types))
        except BaseException as error:
            await self._source.close()
            if isinstance(error, SourceInterruptedError):
                raise GridError(self._hidden.hide(error.message), "Is the server there? Try again.") from None
            if isinstance(error, GridscoreError):
                raise self._hidden.within(error) from None
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._source.close()

    async def chunks(self) -> AsyncIterator[Sequence[Row | BadRow]]:
        """The rows. Raises GridscoreError if the database did not answer as it should."""
        number = 0
        try:
            async for batch in self._source.batches():
                chunk: list[Row | BadRow] = []
                for key, text in batch.entries:
                    number += 1
                    chunk.append(self._row(number, key, text or b"null"))
                for poison in batch.poison:
                    number += 1
                    chunk.append(BadRow(number, poison.error.rstrip(".")))
                yield chunk
        except SourceInterruptedError as error:
            message = self._hidden.hide(error.message)
            raise GridError(message, "What was read is in the map. Go on with --resume.") from None
        except GridscoreError as error:
            raise self._hidden.within(error) from None

    def _row(self, number: int, key: str | int, text: bytes) -> Row | BadRow:
        if self._maker is None:
            return Row(number, key, text)
        values = _decode(text)
        for name, kind in self._source.types.items():
            if kind in _PYTHON and values[name] is not None:
                values[name] = _PYTHON[kind](values[name])
        return self._maker.row(number, values, key=key)
