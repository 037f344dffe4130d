"""The verbs of the dashboard: what somebody with the role `operate` can do with a job, each after a confirmation."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from gridscore.client import Client
from gridscore.errors import UsageError
from gridscore.operations.removal import Choice, remove
from gridscore.operations.replay import letter_ids, replay
from gridscore.texts import count_text

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gridscore.grid import Grid
    from gridscore.job import JobRecord


class Asked(NamedTuple):
    """What is to be done."""

    grid: Grid
    record: JobRecord
    version: int | None  # of the model
    letter: str  # ID of a dead letter; all if empty
    why: str = ""  # the reason, for logs
    points_at: int | None = None  # the version that the alias has pointed at when it was asked for


class Verb(NamedTuple):
    """Something that can be done."""

    title: str  # what a button says
    means: str  # what happens then, for the confirmation
    do: Callable[[Asked], Awaitable[str]]  # does it, and says what has come of it
    of_model: bool = False  # whether it moves the model's alias, so that a key needs the model, too
    is_grave: bool = False  # whether it cannot be undone


async def _suspend(asked: Asked) -> str:
    return _moved(await Client(asked.grid).jobs.suspend(asked.record.name))


async def _resume(asked: Asked) -> str:
    return _moved(await Client(asked.grid).jobs.resume(asked.record.name))


def _moved(record: JobRecord | None) -> str:
    return f"The job is {'gone' if record is None else record.state}."


async def _promote(asked: Asked) -> str:
    model, alias = _alias(asked)
    if asked.version is None:
        raise UsageError("No version was named.")
    found = await Client(asked.grid).promote_model(
        model, asked.version, alias, points_at=asked.points_at, why=asked.why
    )
    return f"Version {found.version} of the model {model} is its `{alias}` now; workers use it within a second."


async def _back(asked: Asked) -> str:
    model, alias = _alias(asked)
    found = await Client(asked.grid).rollback_model(model, alias, points_at=asked.points_at, why=asked.why)
    return f"Version {found.version} of the model {model} is its `{alias}` again; workers use it within a second."


def _alias(asked: Asked) -> tuple[str, str]:
    ref = asked.record.job.model
    if ref.alias is None:
        raise UsageError(
            f"The job file names version {ref.version} of the model `{ref.name}`, so no alias changes it.",
            "Submit a job file with another version.",
        )
    return ref.name, ref.alias


async def _stop_experiment(asked: Asked) -> str:
    found = await Client(asked.grid).stop_experiment(asked.record.name, why=asked.why)
    return f"It is over, and the champion scores all events. It was: {found.text}."


async def _promote_experiment(asked: Asked) -> str:
    found = await Client(asked.grid).promote_experiment(asked.record.name, version=asked.version, why=asked.why)
    return f"The challenger is the champion, and the experiment is over. It was: {found.text}."


async def _replay(asked: Asked) -> str:
    name = asked.record.name
    wanted = [asked.letter] if asked.letter else await letter_ids(asked.grid, name)
    done = [each async for each in replay(asked.grid, name, wanted)]
    refused = [each for each in done if each.refusal]
    text = f"{count_text(len(done) - len(refused), 'event is', 'events are')} in the event map again."
    if refused:
        text += f" {count_text(len(refused), 'was', 'were')} refused; the first, {refused[0].id}: {refused[0].refusal}."
    return text


async def _discard(asked: Asked) -> str:
    if not asked.letter:
        raise UsageError("No dead letter was named.", "`gridscore dead-letters purge` removes all of a job.")
    choice = Choice(ids=frozenset((asked.letter,)))
    async for found in remove(asked.grid, asked.record.name, choice):
        if found.left:
            return "It was not removed: there is no such dead letter, or it is being put back just now."
    return "The dead letter is removed. Its event is still in the event map, unless a newer one has its key."


VERBS = {
    "suspend": Verb(
        "Suspend",
        "Workers stop scoring, and keep the offsets. Events wait in the journal: if it is full, they are lost.",
        _suspend,
    ),
    "resume": Verb("Resume", "Workers score again, from the committed offsets.", _resume),
    "promote": Verb(
        "Promote",
        "Workers of all jobs that follow the alias score with this version within a second, if it passes their gates.",
        _promote,
        of_model=True,
    ),
    "rollback": Verb(
        "Roll back",
        "The alias of the model points where it pointed before, for all jobs that follow it. Gates are not asked.",
        _back,
        of_model=True,
    ),
    "stop-experiment": Verb(
        "Stop the experiment", "The champion scores all events; what a shadow has scored is removed.", _stop_experiment
    ),
    "promote-experiment": Verb(
        "Promote the challenger",
        "The alias of the model points at the challenger, if it passes the gates, and the experiment ends.",
        _promote_experiment,
        of_model=True,
    ),
    "replay": Verb(
        "Replay", "Events are put into the event map again, under their own keys, and scored like new ones.", _replay
    ),
    "discard": Verb("Discard", "The dead letter is removed for good.", _discard, is_grave=True),
}
