"""Connections to PostgreSQL, and what it refuses for people: for the source, the sink and `gridscore load`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

from gridscore.errors import GridscoreError, RefusedError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

CONNECT_SECONDS = 10

# Before statements that make something in the database, in one transaction with them: processes that start together
# would fail with one error or another, for all of `IF NOT EXISTS` and `OR REPLACE`.
ONE_BY_ONE = "SELECT pg_advisory_xact_lock(hashtext('gridscore'));"


class PostgresError(RefusedError):
    """PostgreSQL refuses what was asked of it, and is likely to refuse it again."""

    exit_code = 3


# What a server says before there is a session has no code that libpq passes on, only its words.
_REFUSED: Sequence[tuple[str, str, str]] = (
    (
        r"password authentication failed|no password supplied|authentication failed|role .* does not exist",
        "PostgreSQL at {place} refuses the user or the password.",
        "Look at the user and the password of the address; a password may also come from PGPASSWORD or ~/.pgpass.",
    ),
    (
        r"no pg_hba\.conf entry",
        "PostgreSQL at {place} lets nobody in from here: {text}",
        "Its administrator must allow it in pg_hba.conf; or the server wants TLS: add `?sslmode=verify-full`.",
    ),
    (
        r"database .* does not exist",
        "PostgreSQL at {place} has no such database.",
        "Look at the name after the last `/` of the address.",
    ),
    (
        r"not currently accepting connections",
        "PostgreSQL at {place} lets nobody into this database: {text}",
        "Its administrator has closed it, as for a restore: ALTER DATABASE … ALLOW_CONNECTIONS true opens it.",
    ),
    (
        r"permission denied for database|is not permitted to log in",
        "PostgreSQL at {place} does not let this user in: {text}",
        "Grant it CONNECT on the database, and LOGIN.",
    ),
    (
        r"certificate|root\.crt|does not match host name|(tls|ssl)v\d+ alert",
        "The TLS connection to PostgreSQL at {place} is not trusted: {text}",
        "Name its authority by `?sslmode=verify-full&sslrootcert=FILE`, and the host as the certificate calls it.",
    ),
    (
        r"does not support SSL",
        "PostgreSQL at {place} does not speak TLS, which the address asks for.",
        "Turn `ssl` on in the server, or use another `sslmode`.",
    ),
)
# Classes: connection exception, insufficient resources, operator intervention (a shutdown, a time-out), system error,
# transaction rollback (a deadlock), object in use (a lock not available); and a server that may only be read now.
_PASSING = ("08", "53", "57", "58", "40", "55", "25006", "25P03")


def place_of(database: str) -> str:
    """Where an address leads, without its secrets: `db.example.com:5432/shop`.

    Raises UsageError if it is not an address.
    """
    try:
        parts = conninfo_to_dict(database)
    except psycopg.ProgrammingError as error:
        # libpq quotes what it does not understand, and that may be the password.
        why = re.sub('".*"', '"…"', _line(error))
        raise UsageError(
            f"This is not an address of a PostgreSQL database: {why}.",
            "Write it as postgresql://USER@HOST:5432/DATABASE.",
        ) from None
    begin = database.partition("?")[0]
    if "://" in begin and (begin.count("@") > 1 or not re.fullmatch("[0-9,]*", str(parts.get("port") or ""))):
        # What is taken for the host, and would be shown, is a part of the password.
        raise UsageError(
            "This is not an address of a PostgreSQL database: it has an `@`, `:` or `/` too many, or its port is not a "
            "number.",
            "In a user or password, write them as URLs have them: %40, %3A and %2F.",
        )
    host = parts.get("host") or parts.get("hostaddr") or "this machine"
    return f"{host}:{parts.get('port') or 5432}/{parts.get('dbname') or parts.get('user') or ''}"


async def connect(
    database: str, interrupted: type[GridscoreError], *, application: str, autocommit: bool = True
) -> psycopg.AsyncConnection[Any]:
    """Connect to a database.

    Args:
        database: Its address, as libpq takes it: a URL, or `host=… dbname=…`.
        interrupted: What to raise if trying again may help.
        application: Name of ours, that the server's administrator sees.
        autocommit: Whether each statement is a transaction of its own.

    Raises:
        UsageError: It is not an address.
        PostgresError: The server refuses us, and will go on doing so.
        GridscoreError: Of the type `interrupted`: it cannot be reached, or takes nobody now.
    """
    place = place_of(database)
    try:
        return await psycopg.AsyncConnection.connect(
            database,
            autocommit=autocommit,
            **arguments(database, application),
        )
    except (psycopg.Error, UnicodeError) as error:
        raise failure(error, place, interrupted) from None


def failure(error: Exception, place: str, interrupted: type[GridscoreError]) -> GridscoreError:
    """What to raise for an error of PostgreSQL or of the way there.

    `error`: as psycopg has raised it; `place`: of the database; `interrupted`: the type for what trying again may heal.
    """
    text = _line(error)
    state = getattr(error, "sqlstate", None)
    if state is None:
        for pattern, message, hint in _REFUSED:
            if re.search(pattern, text, re.IGNORECASE):
                return PostgresError(message.format(place=place, text=text), hint)
        return interrupted(f"PostgreSQL at {place} cannot be reached: {text}", "It is tried again.")
    if state.startswith(_PASSING):
        return interrupted(f"PostgreSQL at {place} does not answer as it should: {text}", "It is tried again.")
    if state == "42501":
        return PostgresError(f"PostgreSQL at {place} does not allow it: {text}", "Grant the user what it needs.")
    return PostgresError(f"PostgreSQL at {place} refuses: {text}")


def arguments(database: str, application: str, **more: Any) -> dict[str, Any]:
    """How to connect to a database, as `connect` does and with `more`, unless its address says otherwise."""
    ours = {"connect_timeout": CONNECT_SECONDS, "application_name": application, **more}
    said = conninfo_to_dict(database)
    # A database of the encoding SQL_ASCII would give bytes for texts.
    return {name: said.get(name, value) for name, value in ours.items()} | {"client_encoding": "utf8"}


def _line(error: Exception) -> str:
    """The words of an error in one line."""
    text = getattr(getattr(error, "diag", None), "message_primary", None) or str(error)
    return " ".join(text.split()).removeprefix("connection failed: ").rstrip(".") or type(error).__name__
