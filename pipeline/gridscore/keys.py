"""Keys of those who come by HTTP: who may do what, with which jobs, maps and models, until when.

A key is shown once, when it is made. The grid holds its SHA-256: a secret of 256 random bits needs no slow hash.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import re
import secrets
from collections import OrderedDict
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from msgspec import Meta

from gridscore.errors import UsageError
from gridscore.grid.records import Records, parsed
from gridscore.grid.watches import Watched

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gridscore.grid import Grid

KEYS_MAP = "gridscore.keys"

MOST = 10_000  # keys that a cluster holds
RATE = "[1-9][0-9]{0,6}/[smh]"  # the form of a rate
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3_600.0}
_PAUSE_SECONDS = 0.5
_FORM = re.compile(r"gs_([0-9a-f]{12})_[A-Za-z0-9_-]{43}")


class Role(StrEnum):
    """What a key is for."""

    SCORE = "score"  # `POST /score/JOB`, and models by the Open Inference Protocol
    INGEST = "ingest"  # `POST /events/MAP`; and, with `score`, `POST /score/JOB?record=true`
    READ = "read"  # results, and lists of what there is; the dashboard
    # What runs: suspend and resume jobs, promote models, replay and discard dead letters.
    OPERATE = "operate"
    # What may run, and what is removed: job files, models, keys; also past the gates.
    ADMIN = "admin"


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """What the grid knows of a key."""

    id: Annotated[str, Meta(pattern="^[0-9a-f]{12}$")]  # the part of it that is shown in lists
    note: Annotated[str, Meta(max_length=200)] = ""  # who has it, or what for
    roles: Annotated[tuple[Role, ...], Meta(min_length=1, max_length=len(Role))]  # what it may do
    # Jobs, maps and models that it is for; all if empty.
    only: Annotated[tuple[Annotated[str, Meta(max_length=128)], ...], Meta(max_length=100)] = ()
    digest: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]  # SHA-256 of the whole key, in hexadecimal digits
    created_at: Annotated[dt.datetime, Meta(tz=True)]
    expires_at: Annotated[dt.datetime, Meta(tz=True)] | None = None  # RFC 3339 in UTC; empty if never
    # Requests in a time that each server answers, as `100/s`; empty for no limit.
    rate: Annotated[str, Meta(pattern=f"^({RATE})?$")] = ""

    @property
    def has_expired(self) -> bool:
        return self.expires_at is not None and dt.datetime.now(dt.UTC) >= self.expires_at

    def allows(self, roles: Iterable[Role], name: str | None) -> bool:
        """Whether it is for all of these roles, with a job, map or model; None for what is of no single one."""
        wanted = set(roles)
        return not wanted or (wanted <= set(self.roles) and (not self.only or name in self.only))

    def to_json(self) -> dict[str, Any]:
        """For lists: all but the digest."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        del plain["digest"]
        return {**plain, "expired": self.has_expired}


class Keys:
    """The keys of a cluster."""

    def __init__(self, grid: Grid) -> None:
        self._records = Records(grid, KEYS_MAP)
        self._watched = Watched(grid, KEYS_MAP, parsed(Key), _PAUSE_SECONDS)

    async def create(
        self,
        roles: Iterable[Role],
        only: Iterable[str] = (),
        *,
        note: str = "",
        seconds: float | None = None,
        rate: str = "",
    ) -> tuple[Key, str]:
        """Make a key; returns what the grid knows of it, and the key itself, which nobody can get again.

        `seconds`: how long it is good for; `rate`: see `Key`. Raises UsageError if there are too many, or the rate is
        not one.
        """
        if rate and not re.fullmatch(RATE, rate):
            raise UsageError(f"`{rate}` is not a rate.", "Write it as 100/s, 5000/m or 5000/h, up to 9999999.")
        if len(await self._records.all()) >= MOST:
            raise UsageError(f"There are {MOST:,} keys already.", "`gridscore key revoke ID` removes one.")
        name = secrets.token_hex(6)
        text = f"gs_{name}_{secrets.token_urlsafe(32)}"
        now = dt.datetime.now(dt.UTC).replace(microsecond=0)
        key = Key(
            id=name,
            note=note,
            roles=tuple(dict.fromkeys(roles)),
            only=tuple(dict.fromkeys(only)),
            digest=digest_of(text),
            created_at=now,
            expires_at=None if seconds is None else now + dt.timedelta(seconds=seconds),
            rate=rate,
        )
        await self._records.create(name, msgspec.to_builtins(key))
        return key, text

    async def list(self) -> list[Key]:
        """All keys, the newest last."""
        found = await self._records.read(parsed(Key))
        return sorted(found.values(), key=lambda key: (key.created_at, key.id))

    async def revoke(self, name: str) -> None:
        """Remove a key: servers refuse it within a second. Raises UsageError if there is none."""
        if await self._records.get(name) is None:
            raise UsageError(f"There is no key `{name}`.", "`gridscore key list` lists them.")
        await self._records.delete(name)

    async def find(self, text: str) -> Key | None:
        """The key that somebody shows, if it is one and its time is not over."""
        keys = await self._watched.read()
        matched = _FORM.fullmatch(text)
        key = keys.get(matched[1]) if matched else None
        # One that is not there is compared as well: neither takes less time than the other.
        is_right = hmac.compare_digest(digest_of(text), key.digest if key is not None else "0" * 64)
        return key if is_right and key is not None and not key.has_expired else None

    async def get(self, name: str) -> Key | None:
        """The key of an ID, if there is one and its time is not over."""
        key = (await self._watched.read()).get(name)
        return None if key is None or key.has_expired else key


class Rates:
    """What is left of their rates to the keys that have one.

    The rest of a rate grows steadily, up to all of it: as much as that may come at once.
    """

    def __init__(self) -> None:
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait(self, key: Key, now: float) -> float:
        """Seconds until a request of this key may pass; 0 if it may now, and then it counts."""
        if not key.rate:
            return 0.0
        most, per = float(key.rate[:-2]), _SECONDS[key.rate[-1]]
        left, at = self._left.pop(key.id, (most, now))
        left = min(most, left + (now - at) * most / per)
        self._left[key.id] = left - 1 if left >= 1 else left, now
        if len(self._left) > MOST:
            self._left.popitem(last=False)
        return 0.0 if left >= 1 else (1 - left) * per / most


def granted(name: str, grant: str) -> Key:
    """What somebody whom others vouch for may do, as settings write it: `score,read`, or `score:card-fraud,plain`.

    Raises UsageError if it is not written so.
    """
    roles, colon, only = grant.partition(":")
    if not set(roles.split(",")) <= set(Role) or (colon and not all(only.split(","))):
        raise UsageError(
            f"`{grant}` is not what somebody may do.",
            f"Write roles ({', '.join(Role)}), then names if it is for these only: `score,ingest:JOB,MAP`.",
        )
    return Key(
        id=name,
        roles=tuple(map(Role, roles.split(","))),
        only=tuple(only.split(",")) if only else (),
        digest=digest_of(secrets.token_hex()),
        created_at=dt.datetime.now(dt.UTC),
    )


def digest_of(text: str) -> str:
    """What the grid holds of a key."""
    return hashlib.sha256(text.encode()).hexdigest()
