"""The web hook sink: posts results to an application, signed, and retries those that it does not take for now.

Each key has at most one request under way, so that a later result is never sent before an earlier one was answered;
different keys do not wait for each other. Three answers say that a result is at fault (400, 413, 422): it is refused,
and becomes a dead letter. Any other answer may come from a broken route, so the result is tried again, across
deliveries and with growing pauses, unless the answer says how long to wait. At the deadline the sink stops: no result
is given up, and the next start goes on with it.

A wrong certificate ends the sink at once; so does an address that is not public, at the start. An absent host
interrupts it.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
import re
import ssl
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import aiohttp
import msgspec
from yarl import URL

from gridscore.errors import GridscoreError, UsageError
from gridscore.job.types import seconds_of
from gridscore.sinks.base import Refused, SinkInterruptedError
from gridscore.sinks.webhook.addresses import ForbiddenAddressError, Gate
from gridscore.sinks.webhook.settings import check_credentials
from gridscore.sinks.webhook.signature import ID, SIGNATURE, TIMESTAMP, decode_secret, sign
from gridscore.texts import count_text

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from gridscore.grid import Grid
    from gridscore.sinks.base import Delivered, Delivery
    from gridscore.sinks.webhook.settings import WebhookSinkSettings

_log = logging.getLogger(__name__)

MAX_ANSWER = 64 * 1024  # bytes of an answer that are read, and ignored, to keep the connection; a longer one closes it
# The longest first pause before another attempt, in seconds; it doubles up to the longest of all.
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 30.0

LONGEST_RETRY_AFTER = 3_600.0  # the longest pause that an answer can demand, in seconds
_CONNECT_SECONDS = 5.0
_AIM_SECONDS = 1.0  # of a delivery: long enough to keep all connections busy, short enough for a lease
_MAX_DELIVERY = 10_000
_NEVER = frozenset((400, 413, 422))
_BROKEN_OFF = (ssl.SSLEOFError, ssl.SSLSyscallError, ssl.SSLZeroReturnError)
_json = msgspec.json.Encoder().encode

# Limits of requests under way, by event loop, host and port: shared by the sinks of this process.
_limits: WeakValueDictionary[tuple[int, str | None, int | None], asyncio.Semaphore] = WeakValueDictionary()


class _LaterError(Exception):
    """The hook may take it later, or after some seconds. The hint says what may be wrong."""

    def __init__(self, what: str, seconds: float | None = None, hint: str = "") -> None:
        super().__init__(what)
        self.seconds, self.hint = seconds, hint


class _NeverError(Exception):
    """The hook will never take it."""


@dataclass(slots=True)
class _Fate:
    """What happened to a result, across deliveries of it."""

    partition: int
    began: float = 0.0  # when the first attempt that was put off began, of the monotonic clock
    due: float = 0.0  # it must not be tried again before
    tries: int = 0  # how often it was tried since
    said: str = ""  # the last answer, if it was put off, with advice
    stops: str = ""  # the time of day at which the sink stops if it is still put off
    answered: bool = False  # whether the hook has taken or refused it
    refused: str | None = None  # why the hook does not take it


@dataclass(slots=True)
class _Round:
    """One delivery."""

    until: float  # nothing may be sent later
    # Results to be sent by key, in order, each with its identity.
    waiting: dict[Any, deque[tuple[str, Delivered]]] = field(default_factory=dict)
    ready: deque[Any] = field(default_factory=deque)  # keys without a request under way
    left: int = 0  # how many were not sent before `until`
    failure: GridscoreError | None = None  # what ends the delivery
    over: asyncio.Event = field(default_factory=asyncio.Event)  # set with `failure`

    def add(self, identity: str, result: Delivered) -> None:
        key = (type(result.key), result.key)
        if key not in self.waiting:
            self.waiting[key] = deque()
            self.ready.append(key)
        self.waiting[key].append((identity, result))

    def take(self, count: int) -> tuple[list[Any], list[tuple[str, Delivered]]]:
        """The next results to be sent together, and their keys, which are not ready again until `done`."""
        keys: list[Any] = []
        taken: list[tuple[str, Delivered]] = []
        while self.ready and len(taken) < count:
            key = self.ready.popleft()
            keys.append(key)
            queue = self.waiting[key]
            while queue and len(taken) < count:
                taken.append(queue.popleft())
        return keys, taken

    def done(self, keys: Iterable[Any]) -> None:
        self.ready.extend(key for key in keys if self.waiting[key])

    def skip(self, keys: Iterable[Any], count: int) -> None:
        """These were not sent, so later results of their keys must not be."""
        self.left += count + sum(len(self.waiting[key]) for key in keys)

    def fail(self, error: GridscoreError) -> None:
        # A failure for good says more than an interruption.
        if self.failure is None or isinstance(self.failure, SinkInterruptedError):
            self.failure = error
        self.over.set()

    async def pause_until(self, when: float) -> None:
        """Wait, but only while the delivery goes on."""
        seconds = when - time.monotonic()
        if seconds > 0:
            with suppress(TimeoutError):
                await asyncio.wait_for(self.over.wait(), seconds)


class WebhookSink:
    """Posts results to one address; a delivery has about as many as the hook takes in a second."""

    def __init__(self, grid: Grid, name: str, settings: WebhookSinkSettings) -> None:  # noqa: ARG002 -- as all sinks
        self._name, self._settings = name, settings
        self._map_json = _json(settings.results)
        self._timeout = seconds_of(settings.timeout)
        self._deadline = seconds_of(settings.deadline)
        self._gate = Gate(public_only=settings.public_only)
        self._smallest = self.max_results = min(_MAX_DELIVERY, 2 * settings.batch * settings.connections)
        self._fates: dict[str, _Fate] = {}
        self._not_before = 0.0
        self._session: aiohttp.ClientSession | None = None
        self._url = URL()
        self._where = ""
        self._keys: list[bytes] = []
        self._limit = asyncio.Semaphore()

    async def open(self) -> None:
        """Check the values from the environment, and whether the host can be reached."""
        settings = self._settings
        self._keys = [decode_secret(secret) for secret in settings.secret]
        self._url = _address(settings.url)
        try:
            check_credentials(settings.url, settings.headers)
        except ValueError as error:
            raise UsageError(f"The web hook's settings do not go together: {error}.") from None
        self._where = str(self._url.origin())  # for messages: without credentials, path and query
        tls = self._tls()
        await self._look(tls)
        host = (id(asyncio.get_running_loop()), self._url.host, self._url.port)
        limit = _limits.get(host)
        if limit is None:
            limit = _limits[host] = asyncio.Semaphore(settings.connections)
        self._limit = limit
        headers = {
            "content-type": "application/json",
            "user-agent": f"gridscore/{version('gridscore')}",
            **{name: _header(name, value) for name, value in settings.headers.items()},
        }
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=settings.connections, ssl=tls, socket_factory=self._gate.socket, keepalive_timeout=30
            ),
            headers=headers,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,  # a proxy would connect to any address
        )

    async def taken(self, partitions: Mapping[int, str]) -> Mapping[int, int]:  # noqa: ARG002 -- as all sinks
        """Do nothing: the hook knows no offsets."""
        return {}

    async def dropped(self, partitions: Collection[int]) -> None:
        """Forget the results of partitions that went; their new owners try them again."""
        self._fates = {key: fate for key, fate in self._fates.items() if fate.partition not in partitions}

    async def deliver(self, delivery: Delivery) -> Sequence[Refused]:
        """Post results that were not answered yet; returns those that the hook does not take."""
        began = time.monotonic()
        work = _Round(delivery.until)
        named = [(self._identity(result), result) for result in delivery.results]
        for identity, result in named:
            fate = self._fates.get(identity)
            if fate is None or not fate.answered:
                work.add(identity, result)
        lanes = min(self._settings.connections, len(work.ready))
        await asyncio.gather(*(self._lane(work) for _ in range(lanes)))
        if work.failure is not None:
            raise work.failure
        if work.left:
            put_off = [fate for fate in self._fates.values() if fate.began and not fate.answered]
            if put_off:
                first = min(put_off, key=lambda fate: fate.began)
                raise SinkInterruptedError(
                    f"The web hook at {self._where} does not take results: {first.said} It is tried until "
                    f"{first.stops} UTC; then the sink stops, and the same command, given again, goes on."
                )
            raise SinkInterruptedError(
                f"The web hook at {self._where} has not taken {work.left:,} results yet: they are tried again."
            )
        refused = []
        for identity, result in named:
            fate = self._fates.pop(identity, None)
            if fate is not None and fate.refused is not None:
                refused.append(Refused(result, fate.refused))
        self._adapt(len(named), time.monotonic() - began)
        return refused

    async def close(self) -> None:
        if self._session is not None:
            session, self._session = self._session, None
            await session.close()

    # ------------------------------------------------------------------ one result, or some

    async def _lane(self, work: _Round) -> None:
        """Send ready results, one request at a time."""
        while work.ready and work.failure is None:
            keys, batch = work.take(self._settings.batch)
            try:
                if await self._send(work, batch):
                    work.done(keys)
                else:
                    work.skip(keys, len(batch))
            except GridscoreError as error:
                work.fail(error)

    async def _send(self, work: _Round, batch: list[tuple[str, Delivered]]) -> bool:
        """Post results together until they are answered or refused; False if there is no time.

        Raises GridscoreError if something is wrong that does not concern these results.
        """
        while True:
            fates = [self._fate(identity, result) for identity, result in batch]
            due = max(self._not_before, *(fate.due for fate in fates))
            await work.pause_until(min(due, work.until))
            try:
                async with self._limit:  # waiting for it takes time, so read the clock afterwards
                    began = time.monotonic()
                    if work.failure is not None or max(due, self._not_before, began) >= work.until:
                        return False
                    if began < self._not_before:
                        continue
                    await self._post(batch, work.until - began)
            except SinkInterruptedError:  # an absent host does not count towards the deadline
                for fate in fates:
                    fate.began = 0.0
                raise
            except _LaterError as error:
                self._put_off(fates, began, error)
            except _NeverError as error:
                if len(batch) > 1:  # one of them may be at fault
                    half = len(batch) // 2
                    return await self._send(work, batch[:half]) and await self._send(work, batch[half:])
                self._refuse(fates, str(error))
            else:
                for fate in fates:
                    fate.answered = True
            batch = [each for each, fate in zip(batch, fates, strict=True) if not fate.answered]
            if not batch:
                return True

    def _fate(self, identity: str, result: Delivered) -> _Fate:
        fate = self._fates.get(identity)
        if fate is None:
            fate = self._fates[identity] = _Fate(result.partition)
        return fate

    def _put_off(self, fates: Sequence[_Fate], began: float, error: _LaterError) -> None:
        """Try again after a pause. Raises GridscoreError if the deadline of one of them has passed."""
        now = time.monotonic()
        for fate in fates:
            if not fate.began:
                fate.began, fate.stops = began, _time_of_day(began + self._deadline - now)
            fate.tries += 1
            fate.said = f"{error}. {error.hint}".rstrip()
        first = min(fates, key=lambda fate: fate.began)
        deadline = first.began + self._deadline
        if now >= deadline:
            raise GridscoreError(
                f"The web hook at {self._where} has not taken a result in {now - first.began:.0f} s and {first.tries} "
                f"attempts: {error}.",
                f"{error.hint or 'Check what is wrong with the receiver.'} Started again, the sink goes on with that "
                "result. If a result is at fault, the receiver must answer 400, 413 or 422: it is a dead letter then.",
            )
        ceiling = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(20, max(fate.tries for fate in fates) - 1))
        pause = random.uniform(ceiling / 2, ceiling)  # noqa: S311 -- so that not all come back at once
        due = min(now + pause, deadline)  # one more attempt before the sink stops
        if error.seconds is not None:  # which may be none at all
            demanded = now + min(error.seconds, LONGEST_RETRY_AFTER)
            due, self._not_before = max(due, demanded), max(self._not_before, demanded)
        for fate in fates:
            fate.due = due
            if due > deadline:
                fate.stops = _time_of_day(due - now)

    def _refuse(self, fates: Sequence[_Fate], why: str) -> None:
        for fate in fates:
            fate.answered, fate.refused = True, f"The web hook at {self._where} answered: {why}"
        _log.debug(  # the dead letters of some seconds are logged together
            "%s: the web hook at %s does not take %s: %s",
            self._name,
            self._where,
            count_text(len(fates), "result"),
            why,
            extra={"action": "refused"},
        )

    async def _post(self, batch: Sequence[tuple[str, Delivered]], seconds: float) -> None:
        """Post once, if it can be sent in time; raises a `_LaterError` or `_NeverError` if refused."""
        session, body = self._session, self._body(batch)
        assert session is not None, "`open` comes first"  # noqa: S101
        identity = batch[0][0] if self._settings.batch == 1 else _digest(body)
        now = int(time.time())
        headers = {ID: identity, TIMESTAMP: str(now), SIGNATURE: sign(self._keys, identity, now, body)}
        # The answer to a request that was sent in time may come later.
        timeout = aiohttp.ClientTimeout(total=self._timeout, connect=min(_CONNECT_SECONDS, seconds))
        try:
            async with session.post(
                self._url, data=body, headers=headers, timeout=timeout, allow_redirects=False
            ) as answer:
                status, reason, wait = answer.status, answer.reason, answer.headers.get("retry-after")
                await _drain(answer)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise self._trouble(error) from error
        self._judge(status, f"{status} {_printable(reason or '')}".strip(), wait)

    def _judge(self, status: int, what: str, wait: str | None) -> None:
        if 200 <= status < 300:
            return
        if status in _NEVER:
            raise _NeverError(what)
        if 300 <= status < 400:
            what += ", and redirects are not followed"
        raise _LaterError(what, _seconds(wait), _advice(status))

    # ------------------------------------------------------------------ what is sent

    def _identity(self, result: Delivered) -> str:
        # Another process sends the same result under another epoch, and a rescan finds it without a sequence; but a
        # worker's result contains its time. Others may write the same text twice.
        sequence = b"" if "scored_at" in result.value else b"%d" % result.sequence
        return _digest(self._map_json, _json(result.key), result.text, sequence)

    def _body(self, batch: Sequence[tuple[str, Delivered]]) -> bytes:
        texts = [
            b'{"id":"%s","map":%s,"key":%s,"epoch":%d,"sequence":%d,"result":%s}'
            % (identity.encode(), self._map_json, _json(result.key), result.epoch, result.sequence, result.text)
            for identity, result in batch
        ]
        return texts[0] if self._settings.batch == 1 else b"[%s]" % b",".join(texts)

    def _adapt(self, results: int, seconds: float) -> None:
        """Ask for more at a time if this was quick, and for less if it took too long."""
        if seconds > 2 * _AIM_SECONDS:
            self.max_results = max(self._smallest, self.max_results // 2)
        elif results >= self.max_results and seconds < _AIM_SECONDS / 2:
            self.max_results = min(_MAX_DELIVERY, self.max_results * 2)

    # ------------------------------------------------------------------ the connection

    def _tls(self) -> ssl.SSLContext:
        file = self._settings.ca_file
        try:
            return ssl.create_default_context(cafile=file)
        except (OSError, ssl.SSLError) as error:
            raise UsageError(f"The certificates in `{file}` cannot be read: {error}") from None

    async def _look(self, tls: ssl.SSLContext) -> None:
        """Connect once, to find at the start what would be wrong with every result."""
        url, loop = self._url, asyncio.get_running_loop()
        secure = tls if url.scheme == "https" else None
        errors: list[Exception] = []
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                for info in await loop.getaddrinfo(url.host, url.port, type=1):
                    try:
                        self._gate.check(str(info[4][0]))
                        _, writer = await asyncio.open_connection(
                            *info[4][:2], ssl=secure, server_hostname=url.host if secure else None
                        )
                    except OSError as failed:
                        # The error of a public address says more.
                        if not (errors and isinstance(failed, ForbiddenAddressError)):
                            errors[:] = [failed]
                        continue
                    writer.close()
                    with suppress(OSError):
                        await writer.wait_closed()
                    return
        except (OSError, TimeoutError) as failed:
            errors = [failed]
        error = errors[0] if errors else OSError("it has no address")
        raise self._trouble(error, connecting=True) from error

    def _trouble(self, error: Exception, *, connecting: bool = False) -> Exception:
        """The meaning of an error that came instead of an answer."""
        cause = getattr(error, "certificate_error", None) or getattr(error, "os_error", None) or error
        if isinstance(cause, ssl.CertificateError | ssl.SSLError) and not isinstance(cause, _BROKEN_OFF):
            reason = getattr(cause, "verify_message", None) or getattr(cause, "reason", None) or str(cause)
            return GridscoreError(
                f"The web hook at {self._where} cannot be trusted: {_printable(str(reason))}.",
                "Its certificate must be valid for its name; --ca-file names the authority if it is one of your own.",
            )
        if isinstance(cause, ForbiddenAddressError):
            what = f"is at {cause.address}, which is not an address of the public network"
            hint = "--public-only refuses it; leave that out if the address is yours."
            if connecting:
                return GridscoreError(f"The web hook at {self._where} {what}.", hint)
            return _LaterError(f"it {what}", hint=hint)  # a name may have another address soon
        connecting = connecting or isinstance(getattr(error, "os_error", None), OSError)
        if connecting or isinstance(error, aiohttp.ConnectionTimeoutError):
            what = getattr(cause, "strerror", None) or str(cause) or "no answer"
            return SinkInterruptedError(f"The web hook at {self._where} cannot be reached: {_printable(what)}.")
        if isinstance(error, TimeoutError):
            return _LaterError(f"no answer in {self._timeout:.0f} s")
        # If the answer is not HTTP, the error's text would show the address, which may hold a token.
        what = error.message if isinstance(error, aiohttp.ClientResponseError) else str(error)
        return _LaterError(_printable(what or type(error).__name__))


def _time_of_day(seconds: float) -> str:
    """The time of day, in UTC, in so many seconds."""
    return f"{datetime.now(UTC) + timedelta(seconds=seconds):%H:%M:%S}"


def _advice(status: int) -> str:
    """What to do about such an answer; empty if that is not known."""
    if status in (401, 403, 407):
        return "Give it the secret that the receiver has, or the header that it asks for."
    if 300 <= status < 400:
        return "Give the address that it leads to."
    return "Is its address (--url) right, and does it take POST?" if status in (404, 405, 410) else ""


def _digest(*parts: bytes) -> str:
    return "msg_" + hashlib.blake2b(b"\0".join(parts), digest_size=16).hexdigest()


def _header(name: str, value: str) -> str:
    """A header's value, checked.

    Raises:
        UsageError: It, or its name, cannot be in a header. The message does not show the value, which may be a secret.
    """
    if not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", name) or not (value.isascii() and value.isprintable()):
        raise UsageError(
            f"The header `{_printable(name)}` of the web hook, or its value, has characters that headers cannot have."
        )
    return value


def _address(text: str) -> URL:
    """The address, checked.

    Raises UsageError if it is not an address. The message does not show it, as it may hold a password.
    """
    try:
        url = URL(text)
        found = url.scheme in ("http", "https") and url.host and url.port
    except ValueError:
        found = None
    if not found:
        raise UsageError("The address of the web hook is not a URL.", "Write it as https://shop.example.com/decisions.")
    return url


async def _drain(answer: aiohttp.ClientResponse) -> None:
    """Read an answer to its end, so that its connection can be reused; or close that, if the answer is too long."""
    size = 0
    async for chunk in answer.content.iter_any():
        size += len(chunk)
        if size > MAX_ANSWER:
            answer.close()
            return


def _seconds(header: str | None) -> float | None:
    """Seconds that `Retry-After` demands, given as such or as a date."""
    if header is None:
        return None
    if re.fullmatch(r"[0-9]{1,9}", header):
        return float(header)
    try:
        return max(0.0, parsedate_to_datetime(header).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def _printable(text: str) -> str:
    return "".join(each if each.isprintable() else "?" for each in text[:200])
