"""One tree of exceptions: what failed, where, and what to do next.

Every error that a user can cause or meet derives from :class:`GridscoreError`. Its message is for people; its
``exit_code`` is for scripts. The command line prints the message without a traceback.
"""

from __future__ import annotations

from dataclasses import dataclass

from gridscore.texts import visible


class GridscoreError(Exception):
    """Something went wrong that a person can act on.

    Args:
        message: What failed and where, one sentence.
        hint: What to do next, one sentence; empty if the message says it all.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


class UsageError(GridscoreError):
    """A command or call was given something that it cannot take."""

    exit_code = 2


def missing_extra(what: str, extra: str, error: ModuleNotFoundError, distribution: str = "gridscore") -> UsageError:
    """Something needs a library that an extra would install."""
    return UsageError(
        f"{what} needs the extra `{extra}`: the module `{error.name}` is not installed.",
        f"pip install '{distribution}[{extra}]'",
    )


class RefusedError(UsageError):
    """The other side of a source or sink refuses us: a user, a right, a certificate, a name that it does not have.

    At the start that is for good; later it may pass, so it is tried again for some minutes.
    """


class SettingsError(UsageError):
    """Connection settings are contradictory, misspelt or point to a missing file."""


class JobFileError(UsageError):
    """A job file is not valid. The message has a line for each problem, each with its place."""


class ExpressionError(UsageError):
    """An expression of a job file does not parse, or uses a name, function or type that it cannot."""


class FunctionError(GridscoreError):
    """A Python function of a job's features is not allowed here, cannot be imported, or has failed for an event."""


class TableError(UsageError):
    """A history or lookup file cannot be read, or lacks a column that the job needs."""


class GridError(GridscoreError):
    """The cluster did not do what it was asked."""

    exit_code = 3


class ConnectionFailedError(GridError):
    """No member answered, or the cluster refused this client."""

    exit_code = 4


class ClusterReplacedError(GridError):
    """The cluster was replaced by another one at the same place: what the old one kept in memory is gone."""

    exit_code = 4


class UnsupportedClientError(GridError):
    """The installed hazelcast-python-client is not the version that the journal protocol was written for."""


class MapNotFoundError(GridError):
    """A map that must exist does not."""


class JournalMissingError(GridError):
    """A map has no event journal."""


class BackPressureError(GridError):
    """Events could not be put for longer than the caller would wait: they would overwrite some that nobody has read."""

    exit_code = 8


class NoResultError(GridError):
    """The result of an event did not come in time, or cannot come any more.

    Args:
        message: As of every error.
        hint: As of every error.
        put: Whether the cluster has confirmed the event, so that it will be scored.
    """

    exit_code = 9

    def __init__(self, message: str, hint: str = "", *, put: bool = False) -> None:
        super().__init__(message, hint)
        self.put = put


class EventRejectedError(NoResultError):
    """An event cannot be scored: it is a dead letter, and no result will come.

    Args:
        key: Of the event.
        job: That rejected it.
        stage: Where: `decode`, `lookup` or `features`.
        reason: Why.
        letter: The key of its dead letter.
    """

    def __init__(self, key: str, job: str, stage: str, reason: str, letter: str) -> None:
        super().__init__(
            f"The job {job} cannot score the event `{key}` ({stage}): {reason}",
            f"It is a dead letter: `gridscore dead-letters show {job} {letter}`.",
            put=True,
        )
        self.job, self.stage, self.reason, self.letter = job, stage, reason, letter


class LookupTooLargeError(GridError):
    """A lookup map has more entries than a local copy may hold."""


class ConflictError(GridError):
    """Another client changed the record in the meantime."""


@dataclass(frozen=True, slots=True)
class BadRecord:
    """An entry of a control map that is not what it should be.

    `map_name`: the map; `key`: its key, as people would write it; `reason`: what is wrong with it; `key_data`: the key
    as it is serialized; `value_data`: the value as it is serialized.
    """

    map_name: str
    key: str
    reason: str
    key_data: bytes
    value_data: bytes

    def __str__(self) -> str:
        # Anybody may have written the key, and the reason quotes the value: neither may look like a line of the log.
        return visible(f"The control record `{self.key}` in `{self.map_name}` cannot be used: {self.reason}")

    def to_json(self) -> dict[str, str]:
        """For scripts."""
        return {"map": self.map_name, "key": self.key, "reason": self.reason}


class BadRecordError(GridError):
    """An entry of a control map is not what it should be. `record`: the entry; see `BadRecord`."""

    def __init__(self, record: BadRecord) -> None:
        super().__init__(f"{record}.", "`gridscore repair --dry-run` shows what can be done about it.")
        self.record = record


class MemberError(GridscoreError):
    """An embedded member could not be started or has died."""

    exit_code = 5


class ContainerError(GridscoreError):
    """There is no container engine for us, or it could not start what was asked for."""

    exit_code = 5


class JobError(GridscoreError):
    """A job is not in a state that allows what was asked, or does not exist."""

    exit_code = 6


class JobNotFoundError(JobError):
    """There is no such job, or no such dead letter."""


class EventsLostError(JobError):
    """The journal has lost events before they were read, and the job says to halt then."""


class ModelError(GridscoreError):
    """A model cannot be read, is not what it says it is, or does not fit its job."""

    exit_code = 7


class ModelNotFoundError(ModelError):
    """There is no such model, version or alias."""


class ModelMismatchError(ModelError):
    """A model's features are not the job's. The message shows the difference."""


class GateError(ModelError):
    """A version has not passed the gates of a job. The message says which, and by how much."""


def first_of(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    """The failure to report of several: the first that people can read, else the first."""
    flat: list[BaseException] = []

    def walk(group: BaseExceptionGroup[BaseException]) -> None:
        for error in group.exceptions:
            if isinstance(error, BaseExceptionGroup):
                walk(error)
            else:
                flat.append(error)

    walk(failures)
    return next((error for error in flat if isinstance(error, GridscoreError)), flat[0])
