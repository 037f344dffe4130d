"""Connections of the HTTP source: how many there may be, and which is closed first to make room for others.

Connections without a request do not count as requests; the one that has been silent longest is closed to make room. So
is a request whose body has stalled, or whose answer nobody reads. Only if there is none, a new connection is refused.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections import OrderedDict
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Hashable

_log = logging.getLogger(__name__)

MAX_CONNECTIONS = 2_000
MAX_REQUESTS = 1_000
SLOW_SECONDS = 5.0  # how long a body may stall before its request may be closed to make room
SAY_SECONDS = 10.0  # pause between two log lines about refused connections


class Connection(Protocol):
    """An open connection."""

    def close(self) -> None:
        """Make room for another."""


class _Waiting:
    """Connections that we wait for, the one that moved longest ago first."""

    def __init__(self) -> None:
        self.silent: OrderedDict[Connection, float] = OrderedDict()
        self.receiving: OrderedDict[Connection, float] = OrderedDict()
        self.count = 0  # of all connections, also those that we do not wait for

    def first(self, now: float, *, silent: bool = True) -> Connection | None:
        """The one to close for another; None if there is none."""
        if silent and self.silent:
            return next(iter(self.silent))
        for connection, moved_at in self.receiving.items():
            return connection if now - moved_at >= SLOW_SECONDS else None
        return None


class Connections:
    """The connections of one source.

    `of_address`: most connections of one address; `more`: how many requests and connections there may be beyond the
    usual, for those that last.
    """

    def __init__(self, of_address: int, more: int = 0) -> None:
        self._of_address, self._more = of_address, more
        self._all = _Waiting()
        self._addresses: dict[Hashable, _Waiting] = {}
        self._address_of: dict[Connection, Hashable] = {}
        self._asking: set[Connection] = set()
        self._refused = self._closed = 0
        self._saying: asyncio.TimerHandle | None = None

    @property
    def most(self) -> int:
        """How many there may be."""
        return MAX_CONNECTIONS + self._more

    def enter(self, connection: Connection, host: str) -> bool:
        """Add a connection; whether there is room for it."""
        address = address_of(host)
        own = self._addresses.get(address) or _Waiting()
        crowded = own if own.count >= self._of_address else self._all if self._all.count >= self.most else None
        if crowded is not None and not self._make_room(crowded.first(_now())):
            return self._refuse(host)
        self._addresses[address] = own
        self._address_of[connection] = address
        for each in (own, self._all):
            each.count += 1
            each.silent[connection] = 0.0
        return True

    def begin(self, connection: Connection) -> bool:
        """Note the head of a request; whether there is room for it."""
        if connection not in self._asking:
            if len(self._asking) >= MAX_REQUESTS + self._more and not self._make_room(
                self._all.first(_now(), silent=False)
            ):
                return self._refuse(str(self._address_of.get(connection)))
            self._asking.add(connection)
        for each in self._lists(connection):
            each.silent.pop(connection, None)
            each.receiving[connection] = _now()
        return True

    def moved(self, connection: Connection) -> None:
        """Note a piece of a body."""
        for each in self._lists(connection):
            if connection in each.receiving:
                each.receiving[connection] = _now()
                each.receiving.move_to_end(connection)

    def stalled(self, connection: Connection) -> None:
        """Note that an answer is not being read: its connection counts as slow from now on."""
        for each in self._lists(connection):
            each.silent.pop(connection, None)
            each.receiving[connection] = _now()
            each.receiving.move_to_end(connection)

    def received(self, connection: Connection) -> None:
        """Note that a request is whole, or an answer was read."""
        for each in self._lists(connection):
            each.receiving.pop(connection, None)

    def end(self, connection: Connection) -> None:
        """Note that a request was answered."""
        self._asking.discard(connection)
        for each in self._lists(connection):
            each.receiving.pop(connection, None)
            each.silent[connection] = 0.0

    def leave(self, connection: Connection) -> None:
        lists = self._lists(connection)
        self._asking.discard(connection)
        for each in lists:
            each.count -= 1
            each.silent.pop(connection, None)
            each.receiving.pop(connection, None)
        address = self._address_of.pop(connection, None)
        if lists and not lists[0].count:
            del self._addresses[address]

    def _lists(self, connection: Connection) -> tuple[_Waiting, ...]:
        address = self._address_of.get(connection)
        return () if address is None else (self._addresses[address], self._all)

    def _make_room(self, connection: Connection | None) -> bool:
        if connection is None:
            return False
        self._closed += 1
        self.leave(connection)
        connection.close()
        self._say("")
        return True

    def _refuse(self, host: str) -> bool:
        self._refused += 1
        self._say(host)
        return False

    def _say(self, host: str) -> None:
        if self._saying is None:
            self._say_now(host)

    def _say_now(self, host: str = "") -> None:
        self._saying = None
        if self._refused or self._closed:
            _log.warning(
                "Too many connections: %d refused%s, %d silent or slow ones closed for others",
                self._refused,
                f" (one of {host})" if host else "",
                self._closed,
                extra={"action": "crowded", "refused": self._refused, "closed": self._closed},
            )
            self._refused = self._closed = 0
            self._saying = asyncio.get_running_loop().call_later(SAY_SECONDS, self._say_now)


def address_of(host: str) -> Hashable:
    """What counts as one address: for IPv6, the network of one customer."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    return int(address) >> 64 if isinstance(address, ipaddress.IPv6Address) else host


def _now() -> float:
    return asyncio.get_running_loop().time()
