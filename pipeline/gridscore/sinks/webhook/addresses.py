"""Which addresses a web hook may have: any, or only public ones.

The owner of a name decides what it resolves to, each time. So the address that counts is the one that a socket is about
to connect to; it is checked there, however it was written.
"""

from __future__ import annotations

import ipaddress
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_UNICAST = ipaddress.ip_network("2000::/3")
_NOT_PUBLIC = [
    ipaddress.ip_network(each)
    for each in (
        "168.63.129.16/32",  # Azure's, for its machines only
        "192.88.99.0/24",  # a historic relay from IPv6 to IPv4
        "3fff::/20",  # for documentation; Python does not know it yet
    )
]


class ForbiddenAddressError(OSError):
    """An address that is not public.

    All have the same text, because the errors of several addresses keep their class only if they are alike.
    """

    def __init__(self, address: str) -> None:
        super().__init__("its address is not public")
        self.address = address


def is_public(address: str) -> bool:
    """Whether this is an address, in its plain form, of the public network."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    inner = _inner(found) if isinstance(found, ipaddress.IPv6Address) else ()
    if inner:
        return all(is_public(str(each)) for each in inner)
    if found.version == _UNICAST.version and found not in _UNICAST:
        return False
    if any(found in network for network in _NOT_PUBLIC if network.version == found.version):
        return False
    return found.is_global and not (found.is_multicast or found.is_reserved or found.is_unspecified)


def _inner(address: ipaddress.IPv6Address) -> Sequence[ipaddress.IPv4Address]:
    """The IPv4 addresses that an IPv6 address leads to, through a gateway."""
    if address.ipv4_mapped is not None:
        return [address.ipv4_mapped]
    if address.sixtofour is not None:
        return [address.sixtofour]
    if address.teredo is not None:
        return list(address.teredo)
    if address in _NAT64 or not int(address) >> 32:  # the latter: IPv4-compatible, historic
        return [ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)]
    return []


class Gate:
    """Makes the sockets of connections, except to forbidden addresses."""

    def __init__(self, *, public_only: bool) -> None:
        self._public_only = public_only

    def check(self, address: str) -> None:
        """Raise a `ForbiddenAddressError` if the address must be public and is not."""
        if self._public_only and not is_public(address):
            raise ForbiddenAddressError(address)

    def socket(self, info: tuple[int, int, int, str, tuple[str | int, ...]]) -> socket.socket:
        """A socket for a result of `getaddrinfo`, after `check`."""
        family, kind, protocol, _, address = info
        self.check(str(address[0]))
        return socket.socket(family, kind, protocol)
