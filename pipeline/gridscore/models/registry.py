"""The registry: versions of models in the grid, their aliases, and how both change.

A version becomes visible by one compare-and-set of its model's record, after its bytes and its metadata are in the
grid: nobody ever sees half of one. Maps and keys:

* `gridscore.models`: a record for each model (`record.py`), the only thing that ever changes;
* `gridscore.model-versions`: metadata, under `model/upload`;
* `gridscore.model-chunks`: bytes, a mebibyte each, under `model/upload/number`.
"""

from __future__ import annotations

import asyncio
import getpass
import hashlib
import logging
import socket
import time
import uuid
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from hazelcast.errors import HazelcastError

from gridscore.errors import GridError, GridscoreError, ModelError, ModelNotFoundError, UsageError
from gridscore.grid import Records
from gridscore.models.candidate import Candidate
from gridscore.models.chunks import Chunks
from gridscore.models.description import describe
from gridscore.models.fit import check_jobs
from gridscore.models.loaded import LoadedModel
from gridscore.models.record import STALE_SECONDS, About, Entry, ModelRecord, Move, StoredSample
from gridscore.models.sample import Sample
from gridscore.models.signing import check_signature
from gridscore.models.version import ModelVersion, check_name
from gridscore.texts import did_you_mean, html_table, moment_text

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence

    from gridscore.grid import Grid
    from gridscore.job import Job, ModelRef
    from gridscore.job.release import Release

_log = logging.getLogger(__name__)

MODELS_MAP = "gridscore.models"
VERSIONS_MAP = "gridscore.model-versions"

_REMEMBERED = 256
_CLEANUP_SECONDS = 10.0


class Added(NamedTuple):
    """What came of a push."""

    version: ModelVersion
    is_new: bool  # False if the registry held the very same model already: `version` is the one that it is


class Approval(NamedTuple):
    """What the gates have said before an alias moves."""

    after: str  # the alias's last move when they were asked: what they said holds as long as it has not moved
    override: str = ""  # why the version goes live although some have failed; empty if none has
    failed: str = ""  # what these said


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """A model with all its versions."""

    name: str
    aliases: dict[str, int]  # the version that each alias points at
    versions: tuple[ModelVersion, ...]  # the latest first
    history: dict[str, tuple[Move, ...]]  # the moves of each alias, oldest first
    about: dict[int, About] = {}  # tags and descriptions by version; those of the model itself under 0
    sample: StoredSample | None = None  # the labelled sample that gates judge its versions by

    def aliases_of(self, version: int) -> list[str]:
        """The aliases that point at a version."""
        return sorted(alias for alias, number in self.aliases.items() if number == version)

    def noted_of(self, version: int) -> About:
        """Tags and description of a version."""
        return self.about.get(version, About())

    def to_json(self) -> dict[str, Any]:
        return dict(msgspec.to_builtins(self, str_keys=True))

    def _repr_html_(self) -> str:
        return html_table(*({**v.figures, "aliases": ", ".join(self.aliases_of(v.version))} for v in self.versions))


class Registry:
    """The models of a cluster."""

    def __init__(self, grid: Grid) -> None:
        self._settings = grid.settings
        self._records = Records(grid, MODELS_MAP)
        self._metadata = Records(grid, VERSIONS_MAP)
        self._chunks = Chunks(grid)
        self._known: dict[tuple[str, str], dict[str, Any]] = {}

    async def push(self, model: Any, name: str, **options: Any) -> ModelVersion:
        """Add a model and return its version; takes what `add` takes."""
        return (await self.add(model, name, **options)).version

    async def add(
        self,
        model: Any,  # a path, bytes, a Booster, an estimator of `xgboost.sklearn`, or what `check` gave of one
        name: str,
        *,
        alias: str | None = None,  # to point at the version, in the same step
        metrics: Mapping[str, float] | None = None,
        # Texts in the order of their codes, by feature; instead of what the model itself says.
        categories: Mapping[str, Sequence[str]] | None = None,
        jobs: Mapping[str, Job] | None = None,  # that would score with it, by name; checked before anything is written
        allow_changed: bool = False,  # accept features that these jobs define otherwise than training did
        again: bool = False,  # make a new version even if the registry holds the very same model
        description: str | None = None,
        tags: Mapping[str, str] | None = None,
        source: str = "",  # where it comes from, if not from a file or this program
        why: str = "",
        approval: Approval | None = None,  # of the gates, to move the alias
        progress: Callable[[int, int], None] | None = None,  # called with the bytes written and all bytes
    ) -> Added:
        """Add a model as the next version of its name.

        Nothing is visible until all of it is there; what an interrupted push leaves is cleared away at once, or, if
        this process dies, by a later push.

        Raises ModelError if it is not a model that Gridscore can score with, or not for the features of the jobs;
        UsageError if a name or a metric is not valid.
        """
        check_name(name)
        if alias is not None:
            check_alias(alias)
        candidate = model
        if not isinstance(model, Candidate):
            candidate = await self.check(
                model,
                name,
                metrics=metrics,
                categories=categories,
                jobs=jobs,
                allow_changed=allow_changed,
                source=source,
            )
        settings = self._settings
        if settings.sign_key is not None:
            password = settings.sign_key_password
            candidate = candidate.signed(settings.sign_key, None if password is None else password.get_secret_value())
        if settings.trusted_keys:
            check_signature(candidate.version, settings.trusted_keys)
        number = 0

        def noted(current: ModelRecord) -> ModelRecord:
            """With all that a push notes of a version which is there."""
            described = current.described(name, number, description, tags or {})
            described = described.logged(current, self.entry("describe", version=number))
            return described if alias is None else self._pointed(described, name, number, alias, approval, why)

        existing = None if again else (await self._record(name)).find(candidate.content)
        if existing is not None:
            number = existing
            await self._change(name, noted)
            return Added(await self.resolve(name, version=existing), is_new=False)
        async with self._upload(name, f"the model `{name}`", candidate.payload, progress) as upload:
            await self._metadata.create(f"{name}/{upload}", candidate.metadata())

            def commit(current: ModelRecord) -> ModelRecord:
                nonlocal number
                same = None if again else current.find(candidate.content)
                if same is not None:
                    number = same
                    return noted(current)
                committed = current.committed(name, upload, candidate.content)
                number = committed.last
                return noted(committed.logged(current, self.entry("push", version=number, why=why)))

            await self._change(name, commit)
        version = await self.resolve(name, version=number)
        is_new = (await self._record(name)).versions[number].upload == upload
        if not is_new:  # somebody pushed the very same model at the same time
            await self._abandon(name, upload)
        return Added(version, is_new)

    async def check(self, model: Any, name: str, **options: Any) -> Candidate:
        """Read a model and make every check of a push that needs no cluster; takes what `Candidate.check` takes.

        Raises ModelError if it is not a model that Gridscore can score with, or not for the features of the jobs;
        UsageError if a name or a metric is not valid.
        """
        check_name(name)
        return await asyncio.to_thread(Candidate.check, model, name, **options)

    async def find(self, name: str, candidate: Candidate) -> int | None:
        """The version that is the very same model; None if it is not in the registry."""
        return (await self._record(name)).find(candidate.content)

    async def promote(
        self,
        name: str,
        version: int | None = None,  # its number; an earlier one rolls back
        alias: str = "champion",
        *,
        previous: bool = False,  # instead of a number: where the alias pointed before
        jobs: Mapping[str, Job] | None = None,  # that follow the alias, by name; checked before anything is written
        allow_changed: bool = False,  # accept features that these jobs define otherwise than training did
        points_at: int | None = None,  # where the alias must point now (0: nowhere), unless at that version already
        why: str = "",
        approval: Approval | None = None,
    ) -> ModelVersion:
        """Point an alias at a version; workers that follow it have it within a second.

        Raises ModelError if there is no such model or version, it is not for the features of the jobs, or the alias
        points elsewhere; UsageError if the alias is not valid, or not exactly one of `version` and `previous` is given.
        """
        check_alias(alias)
        if (version is None) is not previous:
            raise UsageError("Give either a version or `previous`.")
        record = await self._existing(name)

        def check(current: ModelRecord) -> None:
            now = current.aliases.get(alias, 0)
            if points_at is not None and now not in (points_at, version):
                raise ModelError(
                    f"The alias `{alias}` of the model `{name}` points at version {now} by now, not {points_at}: it "
                    "stays there.",
                    f"`gridscore model log {name}` says who has moved it.",
                )

        check(record)
        number = record.previous(name, alias) if version is None else record.number(name, None, version)
        found = await self._whole_version(name, number, record)
        check_jobs(jobs, found, allow_changed=allow_changed)
        action = "rollback" if previous else "promote"

        def change(current: ModelRecord) -> ModelRecord:
            check(current)
            return self._pointed(current, name, number, alias, approval, why, action)

        await self._change(name, change)
        return found

    async def load(self, version: ModelVersion) -> LoadedModel:
        """A version, fetched and ready to score. Raises ModelError if it cannot be used here."""
        if self._settings.trusted_keys:
            check_signature(version, self._settings.trusted_keys)
        payload = await self.fetch(version.name, version.version)
        return await asyncio.to_thread(LoadedModel.load, version, payload)

    async def remove_alias(self, name: str, alias: str, *, why: str = "") -> None:
        """Remove an alias; the version it points at stays. Raises ModelError if there is no such model or alias."""
        await self._existing(name)

        def remove(current: ModelRecord) -> ModelRecord:
            without = current.without_alias(name, alias)
            what = {"alias": alias, "before": current.aliases[alias], "why": why}
            return without.logged(current, self.entry("remove alias", **what))

        await self._change(name, remove)

    async def describe(
        self,
        name: str,
        version: int | None = None,
        *,
        description: str | None = None,
        tags: Mapping[str, str] | None = None,
        remove: Iterable[str] = (),
    ) -> About:
        """Note a description and tags of a version, or of the model itself; returns all that is noted of it now.

        `version`: its number; None for the model itself; `description`: replaces the one before; None leaves it. Raises
        ModelError if there is no such model, version or tag, or it is too much.
        """
        await self._existing(name)
        number, gone = version or 0, tuple(remove)

        def change(current: ModelRecord) -> ModelRecord:
            described = current.described(name, number, description, tags or {}, gone)
            return described.logged(current, self.entry("describe", version=number))

        return (await self._change(name, change)).about.get(number, About())

    async def log(self, name: str) -> tuple[Entry, ...]:
        """What was done with a model, oldest first; the last 200 entries are kept.

        Raises ModelError if nothing was ever done with a model of this name.
        """
        record = await self._record(name)
        return record.log or (await self._existing(name)).log

    async def note(self, name: str, action: str, **what: Any) -> None:
        """Add an entry to the log of a model, of something that changes another record."""
        await self._change(name, lambda current: current.logged(None, self.entry(action, **what)))

    async def store_sample(self, name: str, sample: Sample, label: str) -> StoredSample:
        """Keep a labelled sample, by which gates judge the versions of a model; it replaces the one before.

        Raises ModelError if it is too large.
        """
        check_name(name)
        payload = await asyncio.to_thread(sample.pack)
        replaced: StoredSample | None = None

        def commit(current: ModelRecord) -> ModelRecord:
            nonlocal replaced
            replaced = current.sample
            return current.with_sample(name, stored).logged(current, self.entry("sample"))

        async with self._upload(name, f"the sample of `{name}`", payload) as upload:
            stored = StoredSample(
                name=name,
                upload=upload,
                sha256=hashlib.sha256(payload).hexdigest(),
                size=len(payload),
                rows=len(sample),
                label=label,
                at=moment_text(),
            )
            await self._change(name, commit)
        if replaced is not None:
            await self._remove(name, replaced.upload)
        return stored

    async def sample(self, name: str) -> Sample | None:
        """The labelled sample of a model; None if it has none.

        Raises ModelError if the grid holds something else in its place.
        """
        stored = (await self._record(name)).sample
        if stored is None:
            return None
        return await asyncio.to_thread(Sample.unpack, await self._chunks.read(stored, stored.upload), str(stored))

    async def resolve(
        self, name: str, alias: str | None = None, version: int | None = None, *, release: Release | None = None
    ) -> ModelVersion:
        """The version that an alias (`champion` by default) or a number means now.

        Raises ModelError if there is no such model, alias or version.
        """
        record = await self._existing(name)
        return await self._whole_version(name, record.released(name, alias, version, release), record)

    async def chosen(self, ref: ModelRef, text: str | None, release: Release | None = None) -> ModelVersion:
        """The version that somebody has named, by its number or an alias; if nobody has, what a job scores with.

        Raises ModelError if there is no such version.
        """
        if text is None:
            return await self.resolve(ref.name, alias=ref.alias, version=ref.version, release=release)
        alias, version = (None, int(text)) if text.isdecimal() else (text, None)
        return await self.resolve(ref.name, alias=alias, version=version)

    async def aliases(self, name: str) -> dict[str, int]:
        """The version that each alias of a model points at; nothing of a model that does not exist."""
        return (await self._record(name)).aliases

    async def last_move(self, name: str, alias: str) -> str:
        """What tells the last move of an alias from all others; empty if it never moved."""
        return (await self._record(name)).last_move(alias)

    async def complete(self, name: str, alias: str, release: Release, *, why: str = "") -> bool:
        """Let the alias follow a release, if it has not moved since; whether it has followed, now or before.

        Raises ModelError if the version was deleted.
        """

        def follow(current: ModelRecord) -> ModelRecord:
            completed = current.completed(name, alias, release, moment_text())
            what = {"version": release.version, "alias": alias, "before": current.aliases.get(alias, 0), "why": why}
            return completed.logged(current, self.entry("release", **what))

        return (await self._change(name, follow)).took(alias, release)

    async def fetch(self, name: str, version: int) -> bytes:
        """The bytes of a version, as they were pushed.

        Raises ModelError if there is no such version, or its bytes are not what was pushed.
        """
        record = await self._existing(name)
        number = record.number(name, None, version)
        found = await self._version(name, number, record)
        return await self._chunks.read(found, record.versions[number].upload)

    async def get(self, name: str) -> Model:
        """A model with all its versions.

        Raises ModelError if there is no such model, or the grid holds something else in its place.
        """
        record = await self._existing(name)
        versions = [await self._version(name, number, record) for number in sorted(record.versions, reverse=True)]
        return Model(
            name=name,
            aliases=record.aliases,
            versions=tuple(versions),
            history=record.history,
            about=record.about,
            sample=record.sample,
        )

    async def list(self) -> tuple[Model, ...]:
        """All models by name. One that cannot be read is left out, with a warning in the log."""
        for key, record in (await self._metadata.all()).items():
            self._remember(*key.rpartition("/")[::2], record.value)
        models = []
        for name in sorted(await self._records.all()):
            try:
                if (await self._record(name)).versions:
                    models.append(await self.get(name))
            except ModelError as error:
                _log.warning("The model `%s` is left out: %s", name, error)
        return tuple(models)

    async def delete(self, name: str, version: int) -> None:
        """Remove a version and its bytes. Its number is not given again.

        Raises ModelError if there is no such version, or an alias points at it.
        """
        upload = (await self._existing(name)).versions.get(version)
        await self._change(
            name, lambda current: current.deleted(name, version).logged(current, self.entry("delete", version=version))
        )
        if upload is not None:
            await self._remove(name, upload.upload)

    async def delete_all(self, name: str) -> None:
        """Remove a model with all versions and aliases. What is pushed later goes on counting."""
        uploads = (await self._record(name)).used
        await self._change(name, lambda current: current.emptied().logged(current, self.entry("delete")))
        for upload in uploads:
            await self._remove(name, upload)

    async def watch(self, callback: Callable[[], None]) -> Callable[[], Any]:
        """Call back after any change; returns a coroutine function that ends it.

        A change may be missed while the connection is down: look from time to time, too.
        """
        return await self._records.watch(callback)

    @asynccontextmanager
    async def _upload(
        self, name: str, what: str, payload: bytes, progress: Callable[[int, int], None] | None = None
    ) -> AsyncIterator[str]:
        """Write the chunks of an upload, for the context to make it visible; take it back if that fails."""
        await self._clear_away(name)
        upload = uuid.uuid4().hex
        try:
            await self._write(name, upload, payload, progress)
            yield upload
        except BaseException as error:
            await _finish(self._abandon(name, upload))
            if isinstance(error, HazelcastError):
                raise GridError(
                    f"The cluster did not take {what}: {error}", "Nothing of it is visible; push it again."
                ) from error
            raise

    async def _write(self, name: str, upload: str, payload: bytes, progress: Callable[[int, int], None] | None) -> None:
        """Write the chunks of an upload, which the record knows of from its beginning."""
        renewed = time.monotonic()
        await self._change(name, lambda current: current.begun(upload, time.time()))

        async def step(done: int) -> None:
            nonlocal renewed
            if progress is not None:
                progress(done, len(payload))
            if time.monotonic() - renewed > STALE_SECONDS / 6:
                await self._change(name, lambda current: current.renewed(name, upload, time.time()))
                renewed = time.monotonic()

        await self._chunks.write(name, upload, payload, step)

    def entry(self, action: str, **what: Any) -> Entry:
        """An entry of the log, made now and by this process. Raises UsageError if a reason is too long."""
        try:
            return msgspec.convert({"at": moment_text(), "by": whoami(), "action": action, **what}, Entry)
        except msgspec.ValidationError as error:
            raise UsageError(f"This cannot be written into the log: {error}.", "A reason has 500 characters.") from None

    def _pointed(
        self,
        current: ModelRecord,
        name: str,
        version: int,
        alias: str,
        approval: Approval | None = None,
        why: str = "",
        action: str = "promote",
    ) -> ModelRecord:
        """With an alias pointed at a version, and that in the log.

        Raises ModelError if there is no such version, or the alias has moved since the gates were asked.
        """
        before = current.aliases.get(alias, 0)
        if approval is not None and before != version and current.last_move(alias) != approval.after:
            raise ModelError(
                f"Somebody else moved the alias `{alias}` of the model `{name}` while the gates were asked: "
                "it stays where it is now.",
                f"`gridscore model log {name}` says who. Try again.",
            )
        what: dict[str, Any] = {"version": version, "alias": alias, "before": before, "why": why}
        if approval is not None and approval.override:
            what |= {"override": approval.override, "failed": approval.failed[:1000]}
        return current.promoted(name, version, alias, moment_text()).logged(current, self.entry(action, **what))

    async def _abandon(self, name: str, upload: str) -> None:
        """Take an upload back, unless it has become a version after all."""
        record = await self._change(name, lambda current: current.without({upload}))
        # From here on it cannot become one: the record that a commit in flight would replace is gone.
        if upload not in record.used:
            await self._remove(name, upload)

    async def _clear_away(self, name: str) -> None:
        """Remove what pushes have left that were given up."""
        # First the keys, then the record: an upload is in the record before its first chunk is in the grid.
        found = await self._chunks.uploads(name)
        record = await self._record(name)
        if stale := record.stale(time.time()):
            record = await self._change(name, lambda current: current.without(stale & current.stale(time.time())))
        wanted = record.uploads.keys() | record.used
        for upload in (found.keys() | stale) - wanted:
            _log.info("%s: what is left of a given-up push is removed", name, extra={"action": "push_cleared"})
            await self._metadata.delete(f"{name}/{upload}")
            await self._chunks.delete(found.get(upload, ()))

    async def _remove(self, name: str, upload: str) -> None:
        await self._metadata.delete(f"{name}/{upload}")
        await self._chunks.delete((await self._chunks.uploads(name)).get(upload, ()))

    async def _change(self, name: str, change: Callable[[ModelRecord], ModelRecord]) -> ModelRecord:
        """Change a model's record by compare-and-set; nothing is written if nothing changes."""

        def apply(value: dict[str, Any] | None) -> dict[str, Any]:
            current = ModelRecord.read(value, name)
            changed = change(current)
            return value if value is not None and changed == current else changed.write()

        return ModelRecord.read((await self._records.update(name, apply)).value, name)

    async def _record(self, name: str) -> ModelRecord:
        record = await self._records.get(name)
        return ModelRecord.read(None if record is None else record.value, name)

    async def _existing(self, name: str) -> ModelRecord:
        check_name(name)
        record = await self._record(name)
        if record.versions:
            return record
        names = [model for model, found in (await self._records.all()).items() if found.value.get("versions")]
        if name in names and (record := await self._record(name)).versions:
            return record  # pushed between the two looks
        listed = ", ".join(sorted(names)[:20]) or "none yet"
        raise ModelNotFoundError(
            f"There is no model `{name}`.{did_you_mean(name, names, as_sentence=True)}",
            f"Models of this cluster: {listed}. `gridscore model push FILE --name {name}` pushes one.",
        )

    async def _version(self, name: str, number: int, record: ModelRecord) -> ModelVersion:
        upload = record.versions[number].upload
        value = self._known.get((name, upload))
        if value is None:
            found = await self._metadata.get(f"{name}/{upload}")
            if found is None:
                raise ModelError(
                    f"The grid has lost what it knew of version {number} of the model `{name}`.",
                    "Push the model again, as a new version.",
                )
            value = found.value
            self._remember(name, upload, value)
        return ModelVersion.from_json(value, name, number)

    async def _whole_version(self, name: str, number: int, record: ModelRecord) -> ModelVersion:
        """The same, with what metadata of older releases lacks read from the file."""
        found = await self._version(name, number, record)
        if found.outputs is None or (found.classes is None and found.objective == "multi:softmax"):
            upload = record.versions[number].upload
            payload = await self._chunks.read(found, upload)
            description = await asyncio.to_thread(describe, payload, f"The model {found}")
            read = {"outputs": description.outputs, "classes": description.classes}
            self._remember(name, upload, {**self._known[name, upload], **read})
            found = msgspec.structs.replace(found, **read)
        return found

    def _remember(self, name: str, upload: str, value: dict[str, Any]) -> None:
        """Metadata never changes: a worker that looks twice a second need not read it each time."""
        while len(self._known) >= _REMEMBERED:
            self._known.pop(next(iter(self._known)))
        self._known[name, upload] = value


def check_alias(alias: str) -> str:
    """Refuse an alias that could be taken for a version. Raises UsageError with the rule."""
    if isinstance(alias, str) and alias.isdigit():
        raise UsageError(f"The alias `{alias}` looks like a version.", "Let it begin with a letter.")
    return check_name(alias, "model alias")


def whoami() -> str:
    """Who runs this process, and where: nothing that proves it."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container's user may have no name
        user = "somebody"
    return f"{user}@{socket.gethostname()}"[:200]


async def _finish(cleanup: Any) -> None:
    """Let a clean-up come to its end although this task was cancelled, but not for ever."""
    task = asyncio.ensure_future(cleanup)
    try:
        async with asyncio.timeout(_CLEANUP_SECONDS):
            await asyncio.shield(task)
    except (GridscoreError, HazelcastError, TimeoutError) as error:
        task.cancel()
        _log.warning("What is left of an interrupted push stays until the next one: %s", error)
