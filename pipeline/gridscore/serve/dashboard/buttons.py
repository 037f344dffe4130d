"""The buttons of the dashboard: what each is called, and which verb of control it is, after a confirmation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import ValidationError

from gridscore.errors import UsageError
from gridscore.serve import verbs
from gridscore.serve.bodies import Act, Discarding, Ending, Promotion, Replaying, Rollback, Stopping
from gridscore.texts import count_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from gridscore.job import JobRecord
    from gridscore.serve.acting import Acting
    from gridscore.serve.verbs import Asked, Work


class Pressed(NamedTuple):
    """What is to be done."""

    record: JobRecord
    version: int | None  # of the model
    letter: str  # ID of a dead letter; all if empty
    experiment: str  # its ID
    why: str = ""  # the reason, for logs
    points_at: int | None = None  # the version that the alias has pointed at when it was asked for

    @property
    def name(self) -> str:
        """The job's."""
        return self.record.name

    def move(self) -> dict[str, Any]:
        """How the alias is to be moved."""
        return {"alias": self._alias(), "points_at": self.points_at, "why": self.why}

    def _alias(self) -> str:
        ref = self.record.job.model
        if ref.alias is None:
            raise UsageError(
                f"The job file names version {ref.version} of the model `{ref.name}`, so no alias changes it.",
                "Submit a job file with another version.",
            )
        return ref.alias


class Button(NamedTuple):
    """Something that can be done."""

    title: str  # what it says
    means: str  # what happens then, for the confirmation
    verb: Work
    given: Callable[[Pressed], Act]  # what the verb is given
    said: Callable[[Any], str]  # what has come of it, of the verb's answer
    target: Callable[[Pressed], str] = lambda pressed: pressed.name  # what the verb is for
    of_model: bool = False  # whether it moves the model's alias, so that a key needs the model, too
    is_grave: bool = False  # whether it cannot be undone

    async def press(self, acting: Acting, asked: Asked, pressed: Pressed) -> str:
        """Do it, and say what has come of it."""
        try:
            target, given = self.target(pressed), self.given(pressed)
        except ValidationError as error:
            raise UsageError(f"This cannot be done: {error.errors()[0]['msg']}.") from None
        return self.said(await acting.do(asked, self.verb, target, {"given": given}))


def _act(pressed: Pressed) -> Act:
    return Act(why=pressed.why)


def _promotion(pressed: Pressed) -> Act:
    if pressed.version is None:
        raise UsageError("No version was named.")
    return Promotion(version=pressed.version, **pressed.move())


def _of_experiment(pressed: Pressed, kind: type[Stopping]) -> Act:
    if not pressed.experiment:
        raise UsageError("No experiment was named.")
    return kind(version=pressed.version, experiment=pressed.experiment, why=pressed.why)


def _discarding(pressed: Pressed) -> Act:
    if not pressed.letter:
        raise UsageError("No dead letter was named.", "`gridscore dead-letters purge` removes all of a job.")
    return Discarding(ids=[pressed.letter], why=pressed.why)


def _replaying(pressed: Pressed) -> Act:
    return Replaying(ids=[pressed.letter] if pressed.letter else [], all=not pressed.letter, why=pressed.why)


def _moved(answer: Any) -> str:
    return f"The job is {answer['state'] or 'gone'}."


def _points(answer: Any, word: str) -> str:
    return (
        f"Version {answer['version']} of the model {answer['name']} is its `{answer['alias']}` {word}; workers use it "
        "within a second."
    )


def _was(answer: Any) -> str:
    return f"It was a {answer['kind']} of {answer['model']} v{answer['version']}."


def _replayed(answer: Any) -> str:
    text = f"{count_text(answer['replayed'], 'event is', 'events are')} in the event map again."
    if refused := answer["refused"]:
        first = f"the first, {refused[0]['id']}: {refused[0]['reason']}"
        text += f" {count_text(len(refused), 'was', 'were')} refused; {first}."
    return text


def _discarded(answer: Any) -> str:
    if not answer["removed"]:
        return "It was not removed: there is no such dead letter, or it is being put back just now."
    return "The dead letter is removed. Its event is still in the event map, unless a newer one has its key."


BUTTONS = {
    "suspend": Button(
        "Suspend",
        "Workers stop scoring, and keep the offsets. Events wait in the journal: if it is full, they are lost.",
        verbs.suspend_job,
        _act,
        _moved,
    ),
    "resume": Button("Resume", "Workers score again, from the committed offsets.", verbs.resume_job, _act, _moved),
    "promote": Button(
        "Promote",
        "Workers of all jobs that follow the alias score with this version within a second, if it passes their gates.",
        verbs.promote_model,
        _promotion,
        lambda answer: _points(answer, "now"),
        target=lambda pressed: pressed.record.job.model.name,
        of_model=True,
    ),
    "rollback": Button(
        "Roll back",
        "The alias of the model points where it pointed before, for all jobs that follow it. Gates are not asked.",
        verbs.rollback_model,
        lambda pressed: Rollback(**pressed.move()),
        lambda answer: _points(answer, "again"),
        target=lambda pressed: pressed.record.job.model.name,
        of_model=True,
    ),
    "stop-experiment": Button(
        "Stop the experiment",
        "The champion scores all events; what a shadow has scored is removed.",
        verbs.stop_experiment,
        lambda pressed: _of_experiment(pressed, Stopping),
        lambda answer: f"It is over, and the champion scores all events. {_was(answer)}",
    ),
    "promote-experiment": Button(
        "Promote the challenger",
        "The alias of the model points at the challenger, if it passes the gates, and the experiment ends.",
        verbs.promote_experiment,
        lambda pressed: _of_experiment(pressed, Ending),
        lambda answer: f"The challenger is the champion, and the experiment is over. {_was(answer)}",
        of_model=True,
    ),
    "replay": Button(
        "Replay",
        "Events are put into the event map again, under their own keys, and scored like new ones.",
        verbs.replay_dead_letters,
        _replaying,
        _replayed,
    ),
    "discard": Button(
        "Discard",
        "The dead letter is removed for good.",
        verbs.discard_dead_letters,
        _discarding,
        _discarded,
        is_grave=True,
    ),
}
