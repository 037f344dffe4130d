"""Ports of embedded members: free ones, and who uses those that are not."""

from __future__ import annotations

import contextlib
import os
import socket

import psutil

from gridscore.errors import MemberError, UsageError

FIRST_PORT = 5701
HOST = "127.0.0.1"
PORT_ATTEMPTS = 5  # with other ports, if one that was free is in use when a member wants it


def choose_ports(members: int, first: int | None) -> list[int]:
    """Ports for this many members: from `first` on, the first free ones if it is None, any free ones if it is 0.

    Raises MemberError if one that was asked for is in use; UsageError if the first is not a port.
    """
    if first == 0:
        with contextlib.ExitStack() as held:
            sockets = [held.enter_context(socket.socket()) for _ in range(members)]
            for each in sockets:
                each.bind((HOST, 0))
            return [each.getsockname()[1] for each in sockets]
    if first is not None:
        if not 1 <= first <= 65536 - members:
            raise UsageError(f"{members} ports do not fit from {first} on.", "Take one from 1024 to 65535.")
        ports = list(range(first, first + members))
        for port in ports:
            if not is_free(port):
                raise MemberError(
                    f"Port {port} is in use{user_of(port)}.", "Choose another with --port, or leave it to us."
                )
        return ports
    free = (port for port in range(FIRST_PORT, FIRST_PORT + 1000) if is_free(port))
    ports = [port for port, _ in zip(free, range(members), strict=False)]
    if len(ports) < members:
        raise MemberError(f"No {members} free ports from {FIRST_PORT} to {FIRST_PORT + 999}.", "Choose with --port.")
    return ports


def is_free(port: int) -> bool:
    """Whether a member could listen on this port of this machine."""
    with socket.socket() as probe:
        if os.name == "posix":  # as the member does; elsewhere this option would let two share the port
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    # Where somebody listens on all addresses, some systems let us bind all the same.
    with socket.socket() as probe:
        probe.settimeout(0.2)
        return probe.connect_ex((HOST, port)) != 0


def user_of(port: int) -> str:
    """` by NAME (process PID)`, as far as the system lets us see it."""
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.laddr and connection.laddr.port == port and connection.status == psutil.CONN_LISTEN:
                if connection.pid is None:
                    break
                return f" by {psutil.Process(connection.pid).name()} (process {connection.pid})"
    except (psutil.Error, OSError):  # we may not look at other people's processes
        pass
    return ""
