"""Which addresses a web hook may be at."""

import socket

import pytest

from gridscore.sinks.webhook.addresses import ForbiddenAddressError, Gate, is_public


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",  # noqa: S104 -- to be refused
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "192.0.2.1",
        "::",
        "::1",
        "::127.0.0.1",
        "fe80::1",
        "fe80::1%eth0",
        "fc00::1",
        "fd12:3456::1",
        "fec0::1",
        "3fff::1",
        "4000::1",
        "64:ff9b:1::808:808",
        "168.63.129.16",
        "::ffff:168.63.129.16",
        "192.88.99.1",
        "ff02::1",
        "2001:db8::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b::10.0.0.1",
        "2002:7f00:1::",
        "2002:c0a8:101::1",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "127.1",
        "localhost",
        "",
    ],
)
def test_what_is_not_public(address):
    assert not is_public(address)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_what_is_public(address):
    assert is_public(address)


def test_the_gate_makes_no_socket_to_what_is_not_public():
    gate = Gate(public_only=True)
    (info, *_) = socket.getaddrinfo("2130706433", 80, type=socket.SOCK_STREAM)
    with pytest.raises(ForbiddenAddressError, match="not public") as refused:
        gate.socket(info)
    assert refused.value.address == "127.0.0.1"


def test_the_gate_lets_through_what_is_allowed():
    (info, *_) = socket.getaddrinfo("127.0.0.1", 80, type=socket.SOCK_STREAM)
    Gate(public_only=False).socket(info).close()
