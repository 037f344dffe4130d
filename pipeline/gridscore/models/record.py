"""The record of a model: its versions, aliases and uploads under way, and every change that can be made to it.

One record holds what must change together, so that one compare-and-set makes a version visible, numbers it and points
an alias at it. The functions here are pure: they take a record's value and return the next one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from msgspec import Meta

from gridscore.errors import ModelError, ModelNotFoundError
from gridscore.models.version import CHUNK, Positive, Sha256, Text
from gridscore.texts import did_you_mean, ranges_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from gridscore.job.release import Release

MAX_VERSIONS = 10_000
MAX_ALIASES = 100
MAX_HISTORY = 50  # moves of one alias that are remembered
MAX_LOG = 200  # entries of a model's log that are kept
MAX_TAGS = 50
MAX_ABOUT = 2 << 20  # bytes that the tags and descriptions of all versions of a model take together, as JSON
MAX_SAMPLE = 64 << 20  # bytes of the largest labelled sample
# An upload that has not been renewed for so long has been given up, and the next push clears it away.
STALE_SECONDS = 120.0


class Stored(msgspec.Struct, frozen=True):
    """Where a version is: its upload, and the SHA-256 over its bytes and categories."""

    upload: Text
    content: Sha256


class Move(msgspec.Struct, frozen=True):
    """An alias was pointed at a version."""

    version: Positive
    at: Text

    @property
    def id(self) -> str:
        """What tells it from all other moves of its alias."""
        return f"{self.version} {self.at}"


class Entry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What somebody has done with a model."""

    at: Text  # when, RFC 3339 in UTC, by the clock of whoever did it
    by: Annotated[str, Meta(max_length=200)]  # who, as the process that did it says of itself
    # `push`, `promote`, `rollback`, `release`, `override`, `describe`, `remove alias`, `delete`, `sample`; `experiment`
    # with `start`, `step`, `end`, `stop` or `promote`.
    action: Annotated[str, Meta(max_length=20)]
    version: Annotated[int, Meta(ge=0, le=2**31)] = 0  # 0 if it was about none, or about all
    alias: Annotated[str, Meta(max_length=100)] = ""  # that was moved or removed
    before: Annotated[int, Meta(ge=0, le=2**31)] = 0  # where the alias pointed; 0 if nowhere
    why: Annotated[str, Meta(max_length=500)] = ""
    override: Annotated[str, Meta(max_length=500)] = ""  # why they went on although gates had failed
    failed: Annotated[str, Meta(max_length=1000)] = ""  # what these gates said


class About(msgspec.Struct, frozen=True, omit_defaults=True):
    """What people note of a version; it changes nothing."""

    description: Annotated[str, Meta(max_length=2_000)] = ""
    tags: Annotated[
        dict[Annotated[str, Meta(min_length=1, max_length=100)], Annotated[str, Meta(max_length=500)]],
        Meta(max_length=MAX_TAGS),
    ] = {}


class StoredSample(msgspec.Struct, frozen=True, kw_only=True):
    """Where a labelled sample is: see `sample.Sample`."""

    name: Annotated[str, Meta(max_length=100)]
    upload: Text  # under which its bytes are
    sha256: Sha256
    size: Annotated[int, Meta(ge=1, le=MAX_SAMPLE)]
    rows: Positive
    label: Text
    at: Text

    @property
    def chunks(self) -> int:
        """Entries of the grid that hold it."""
        return -(-self.size // CHUNK)

    def __str__(self) -> str:
        return f"the sample of {self.name}"


class ModelRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The value of a record."""

    # Counts changes: no two values of a record are the same, as compare-and-set needs.
    revision: Annotated[int, Meta(ge=0, lt=2**53)] = 0
    last: Annotated[int, Meta(ge=0, le=2**31)] = 0  # highest version ever given; numbers are never given twice
    versions: Annotated[dict[int, Stored], Meta(max_length=MAX_VERSIONS)] = {}
    aliases: Annotated[dict[str, int], Meta(max_length=MAX_ALIASES)] = {}  # the version that each points at
    # The moves of each alias, oldest first.
    history: Annotated[dict[str, tuple[Move, ...]], Meta(max_length=MAX_ALIASES)] = {}
    uploads: dict[str, float] = {}  # uploads under way, and when each was last renewed, in seconds since 1970
    # Tags and descriptions by version; those of the model itself under 0.
    about: Annotated[dict[int, About], Meta(max_length=MAX_VERSIONS + 1)] = {}
    log: Annotated[tuple[Entry, ...], Meta(max_length=MAX_LOG)] = ()  # what was done, oldest first
    sample: StoredSample | None = None  # the labelled sample that its gates judge versions by

    def __post_init__(self) -> None:
        if self.versions and max(self.versions) > self.last:
            raise ValueError("a version is above the last one")
        if gone := set(self.aliases.values()) - self.versions.keys():
            raise ValueError(f"an alias points at version {min(gone)}, which does not exist")

    @classmethod
    def read(cls, value: dict[str, Any] | None, name: str) -> ModelRecord:
        """The typed value; an empty one for None. Raises ModelError if it does not hold what it should."""
        if value is None:
            return cls()
        try:
            return msgspec.convert(value, cls, str_keys=True)
        except msgspec.ValidationError as error:
            raise ModelError(
                f"The record of the model `{name}` in the cluster is not valid: {error}.",
                "It was written by something else than this version of Gridscore.",
            ) from None

    def write(self) -> dict[str, Any]:
        """The value to store, one revision on."""
        value: dict[str, Any] = msgspec.to_builtins(
            msgspec.structs.replace(self, revision=self.revision + 1), str_keys=True
        )
        return value

    def find(self, content: str) -> int | None:
        """The latest version of that content."""
        return max((number for number, stored in self.versions.items() if stored.content == content), default=None)

    def number(self, name: str, alias: str | None, version: int | None) -> int:
        """The version that an alias, or a number, means. Raises ModelError if there is no such version or alias."""
        if version is not None:
            if version not in self.versions:
                raise ModelNotFoundError(
                    f"The model `{name}` has no version {version}.",
                    f"Its versions: {ranges_text(sorted(self.versions)) or 'none'}.",
                )
            return version
        alias = alias or "champion"
        if alias not in self.aliases:
            known = ", ".join(f"{a} (v{v})" for a, v in sorted(self.aliases.items())) or "none"
            raise ModelNotFoundError(
                f"The model `{name}` has no alias `{alias}`.{did_you_mean(alias, self.aliases, as_sentence=True)}",
                f"Its aliases: {known}. Point this one at a version: "
                f"`gridscore model promote {name} --version N --alias {alias}`.",
            )
        return self.aliases[alias]

    def last_move(self, alias: str) -> str:
        """What tells the last move of an alias from all others; empty if it never moved."""
        moves = self.history.get(alias)
        return moves[-1].id if moves else ""

    def released(self, name: str, alias: str | None, version: int | None, release: Release | None) -> int:
        """The version that a job's reference means: that of its release, as long as the alias has not moved since.

        Raises ModelError if there is no such version or alias.
        """
        if release is not None and version is None and self.last_move(alias or "champion") == release.after:
            return self.number(name, None, release.version)
        return self.number(name, alias, version)

    def previous(self, name: str, alias: str) -> int:
        """The version that an alias pointed at before.

        Raises ModelError if it never pointed elsewhere, or only at versions that were deleted.
        """
        now = self.number(name, alias, None)
        for move in reversed(self.history.get(alias, ())):
            if move.version != now and move.version in self.versions:
                return move.version
        raise ModelError(
            f"The alias `{alias}` of the model `{name}` never pointed at another version than {now}.",
            f"Name the version: `gridscore model promote {name} --version N`. "
            f"Its versions: {ranges_text(sorted(self.versions)) or 'none'}.",
        )

    def begun(self, upload: str, now: float) -> ModelRecord:
        """With an upload under way."""
        return msgspec.structs.replace(self, uploads={**self.uploads, upload: now})

    def renewed(self, name: str, upload: str, now: float) -> ModelRecord:
        """With a sign of life of an upload. Raises ModelError if it was cleared away."""
        if upload not in self.uploads:
            raise _cleared_away(name)
        return self.begun(upload, now)

    def without(self, uploads: set[str]) -> ModelRecord:
        return msgspec.structs.replace(self, uploads={u: at for u, at in self.uploads.items() if u not in uploads})

    def stale(self, now: float) -> set[str]:
        """Uploads that were given up."""
        return {upload for upload, at in self.uploads.items() if abs(now - at) > STALE_SECONDS}

    def committed(self, name: str, upload: str, content: str) -> ModelRecord:
        """With an upload made the next version.

        Raises ModelError if the upload was cleared away, or there are too many versions.
        """
        if upload not in self.uploads:
            raise _cleared_away(name)
        if len(self.versions) >= MAX_VERSIONS:
            raise ModelError(
                f"The model `{name}` has {MAX_VERSIONS:,} versions, which is the limit.",
                f"Delete old ones: `gridscore model delete {name} --version N`.",
            )
        number = self.last + 1
        versions = {**self.versions, number: Stored(upload, content)}
        return msgspec.structs.replace(self.without({upload}), last=number, versions=versions)

    def promoted(self, name: str, version: int, alias: str, at: str) -> ModelRecord:
        """With an alias pointed at a version; no move if it is there already.

        Raises ModelError if there is no such version, or there are too many aliases.
        """
        self.number(name, None, version)
        return self if self.aliases.get(alias) == version else self._moved(name, version, alias, at)

    def completed(self, name: str, alias: str, release: Release, at: str) -> ModelRecord:
        """With the move of a release, if the alias has not moved since it was made.

        It is a move even to the version where the alias is: what was released before has come to its end with it.

        Raises ModelError if the version was deleted, or there are too many aliases.
        """
        if self.last_move(alias) != release.after:
            return self
        self.number(name, None, release.version)
        return self._moved(name, release.version, alias, at)

    def took(self, alias: str, release: Release) -> bool:
        """Whether a release was completed, wherever the alias has moved since."""
        moves = self.history.get(alias, ())
        begin = next((n + 1 for n, move in enumerate(moves) if move.id == release.after), 0)
        return any(move.version == release.version for move in moves[begin:])

    def _moved(self, name: str, version: int, alias: str, at: str) -> ModelRecord:
        if alias not in self.aliases and len(self.aliases) >= MAX_ALIASES:
            raise ModelError(f"The model `{name}` has {MAX_ALIASES} aliases, which is the limit.")
        moves = (*self.history.get(alias, ()), Move(version, at))[-MAX_HISTORY:]
        return msgspec.structs.replace(
            self, aliases={**self.aliases, alias: version}, history={**self.history, alias: moves}
        )

    def deleted(self, name: str, version: int) -> ModelRecord:
        """Without a version. Raises ModelError if there is no such version, or an alias points at it."""
        self.number(name, None, version)
        if pointing := sorted(alias for alias, number in self.aliases.items() if number == version):
            raise ModelError(
                f"Version {version} of the model `{name}` is its `{'`, `'.join(pointing)}`.",
                f"Point the alias elsewhere first: `gridscore model promote {name} --version N --alias {pointing[0]}`.",
            )
        return msgspec.structs.replace(
            self,
            versions={n: s for n, s in self.versions.items() if n != version},
            about={n: each for n, each in self.about.items() if n != version},
        )

    def without_alias(self, name: str, alias: str) -> ModelRecord:
        """Without an alias, and where it pointed. Raises ModelError if there is no such alias."""
        self.number(name, alias, None)
        return msgspec.structs.replace(
            self,
            aliases={a: number for a, number in self.aliases.items() if a != alias},
            history={a: moves for a, moves in self.history.items() if a != alias},
        )

    def described(
        self, name: str, version: int, description: str | None, tags: Mapping[str, str], remove: Iterable[str] = ()
    ) -> ModelRecord:
        """With a description or tags, those that are there already replaced.

        `version`: 0 for the model itself; `description`: None leaves it as it is. Raises ModelError if there is no such
        version or tag, or this is too long or too much.
        """
        if version:
            self.number(name, None, version)
        old = self.about.get(version, About())
        of = f"version {version} of the model `{name}`" if version else f"the model `{name}`"
        if unknown := [tag for tag in remove if tag not in old.tags]:
            known = ", ".join(old.tags) or "none"
            raise ModelError(f"There is no tag `{unknown[0]}` of {of}.", f"Its tags: {known}.")
        kept = {tag: text for tag, text in {**old.tags, **tags}.items() if tag not in set(remove)}
        try:
            fresh = msgspec.convert(
                {"description": old.description if description is None else description, "tags": kept}, About
            )
        except msgspec.ValidationError as error:
            raise ModelError(
                f"This cannot be noted of {of}: {error}.",
                f"At most {MAX_TAGS} tags with names of 100 and texts of 500 characters, and a description of 2,000.",
            ) from None
        about = {**self.about, version: fresh}
        if not fresh.tags and not fresh.description:
            del about[version]
        if len(msgspec.json.encode({str(n): each for n, each in about.items()})) > MAX_ABOUT:
            raise ModelError(
                f"The tags and descriptions of the model `{name}` take more than {MAX_ABOUT >> 20} MiB.",
                "Remove those of old versions, or delete these.",
            )
        return msgspec.structs.replace(self, about=about)

    def with_sample(self, name: str, sample: StoredSample) -> ModelRecord:
        """With an upload made the labelled sample. Raises ModelError if the upload was cleared away."""
        if sample.upload not in self.uploads:
            raise _cleared_away(name)
        return msgspec.structs.replace(self.without({sample.upload}), sample=sample)

    @property
    def used(self) -> set[str]:
        """The uploads that something visible points at."""
        stored = {each.upload for each in self.versions.values()}
        return stored if self.sample is None else stored | {self.sample.upload}

    def logged(self, before: ModelRecord | None, entry: Entry) -> ModelRecord:
        """With an entry in the log, if anything has changed since `before`; the oldest one makes room for it."""
        return self if self == before else msgspec.structs.replace(self, log=(*self.log, entry)[-MAX_LOG:])

    def emptied(self) -> ModelRecord:
        """Without versions, aliases, notes and sample; the log stays."""
        return msgspec.structs.replace(self, versions={}, aliases={}, history={}, about={}, sample=None)


def _cleared_away(name: str) -> ModelError:
    return ModelError(
        f"Pushing the model `{name}` was without a sign of life for so long that another push cleared it away.",
        "Push it again.",
    )
