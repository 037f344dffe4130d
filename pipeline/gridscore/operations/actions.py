"""The log of actions: what people have done by HTTP, with which key, and what came of it.

An action is noted before it begins, so none is done that is not in the log; its outcome is noted afterwards.
"""

from __future__ import annotations

import logging
import secrets
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from hazelcast.errors import HazelcastError
from msgspec import Meta

from gridscore.errors import GridError, GridscoreError
from gridscore.grid.records import Records, parsed
from gridscore.texts import moment_text

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from gridscore.grid import Grid

_log = logging.getLogger(__name__)

ACTIONS_MAP = "gridscore.actions"

KEPT = 1_000  # actions that are kept
MAX_WHY = 300

BEGUN, DONE = "begun", "done"

_KEY = "log"
_Short = Annotated[str, Meta(max_length=200)]


class Action(msgspec.Struct, frozen=True):
    """What somebody has done."""

    id: _Short
    at: _Short  # when, RFC 3339 in UTC, by the clock of the server
    by: _Short  # the ID of the key, or `token`
    verb: _Short
    target: _Short  # the name of a job
    detail: _Short = ""  # of the verb, such as the version
    why: Annotated[str, Meta(max_length=MAX_WHY)] = ""
    outcome: _Short = BEGUN  # `begun` until it has ended, then `done`, or why not


class Actions(msgspec.Struct, frozen=True):
    """What the record holds, the newest last."""

    actions: Annotated[list[Action], Meta(max_length=KEPT)]


class ActionLog:
    """The log of a cluster."""

    def __init__(self, grid: Grid) -> None:
        self._records = Records(grid, ACTIONS_MAP)

    async def list(self) -> list[Action]:
        """The actions that are kept, the newest first."""
        found = (await self._records.read(parsed(Actions))).get(_KEY, Actions([]))
        return found.actions[::-1]

    @asynccontextmanager
    async def noted(self, by: str, verb: str, target: str, detail: str = "", why: str = "") -> AsyncIterator[None]:
        """Note an action, and then how what is done meanwhile has ended.

        Raises GridError if it could not be noted: then nothing is done.
        """
        action = Action(secrets.token_hex(8), moment_text(), by, verb, target[:200], detail[:200], why[:MAX_WHY])
        await self._records.update(_KEY, lambda value: _with(value, action))
        outcome = "ended without an answer"
        try:
            yield
            outcome = DONE
        except GridscoreError as error:
            outcome = error.message
            raise
        finally:
            ended = msgspec.structs.replace(action, outcome=outcome[:200])
            try:
                await self._records.update(_KEY, lambda value: _with(value, ended))
            except (GridError, HazelcastError) as error:  # it is done all the same
                _log.warning("The end of `%s %s` could not be noted: %s", verb, target, error)


def _with(value: dict[str, Any] | None, action: Action) -> dict[str, Any]:
    """The record with an action, which replaces the one of its ID."""
    try:
        known = [] if value is None else msgspec.convert(value, Actions).actions
    except msgspec.ValidationError as error:
        text = f"The log of actions cannot be used, so nothing is done that would have to be noted: {error}."
        raise GridError(text, "`gridscore repair` repairs or removes it.") from None
    kept = [each for each in known if each.id != action.id]
    plain: dict[str, Any] = msgspec.to_builtins(Actions([*kept, action][-KEPT:]))
    return plain
