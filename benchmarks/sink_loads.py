"""Loads to measure sinks with: nowhere, folders, and servers of our own that take results."""

from __future__ import annotations

import asyncio
import base64
import os
import secrets
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from benchmarks.plugs import UnavailableError, need, server
from benchmarks.sinks import Load
from benchmarks.source_loads import TOPIC, create_topic
from gridscore.errors import MemberError
from gridscore.grid.ports import HOST, choose_ports, is_free
from gridscore.job.plugs.base import SinkSettings
from gridscore.leash import LeashedProcess

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from gridscore.sinks.base import Delivery, Refused

_FILES = 4
_ONE_BY_ONE = 20_000
_LOOKS, _LOOK_SECONDS = 300, 0.1
_SECRET = "BENCH_WEBHOOK_SECRET"  # noqa: S105 -- the variable's name


class _Nowhere:
    """A sink that costs nothing: what the runner and the journal take is the limit of all others."""

    max_results = 5_000
    identity = ""

    async def open(self) -> None:
        """Nothing to connect to."""

    async def taken(self, partitions: Mapping[int, str]) -> Mapping[int, int]:
        """Nothing is known."""
        del partitions
        return {}

    async def dropped(self, partitions: Collection[int]) -> None:
        """Nothing is kept."""

    async def deliver(self, delivery: Delivery) -> Sequence[Refused]:
        """Taken."""
        del delivery
        return ()

    async def close(self) -> None:
        """Nothing to let go."""


@asynccontextmanager
async def nowhere(folder: Path, count: int, results: str) -> AsyncIterator[Load]:  # noqa: ARG001 -- no files
    """A sink that does nothing."""
    yield Load(SinkSettings(results=results), _Nowhere)


@asynccontextmanager
async def postgres(folder: Path, count: int, results: str, columns: str = "json") -> AsyncIterator[Load]:  # noqa: ARG001
    """A table of a server of its own, which writes to the disk before it confirms."""
    from gridscore.sinks.postgres.settings import PostgresSinkSettings

    need("psycopg", "postgres")
    from gridscore.errors import MemberError
    from gridscore.testing.postgres import PostgresServer

    column = {"amount": "double precision", "user": "text"} if columns == "typed" else {}
    async with server(PostgresServer.start, folder, MemberError, fsync="on") as running:
        given = {"database": running.url(), "table": "scores", "columns": columns, "column": column}
        yield Load(PostgresSinkSettings.model_validate({"from": results, **given}))


def postgres_typed(folder: Path, count: int, results: str) -> AbstractAsyncContextManager[Load]:
    """The same, with a column for each field."""
    return postgres(folder, count, results, "typed")


@asynccontextmanager
async def kafka(folder: Path, count: int, results: str, *, transactions: bool = False) -> AsyncIterator[Load]:  # noqa: ARG001
    """A topic of some partitions on a broker of its own."""
    from gridscore.sinks.kafka.settings import KafkaSinkSettings

    need("confluent_kafka", "kafka")
    from gridscore.testing.kafka import Broker

    async with server(Broker.start, folder, MemberError) as broker:
        await asyncio.to_thread(create_topic, broker.address)
        yield Load(
            KafkaSinkSettings(results=results, brokers=(broker.address,), topic=TOPIC, transactions=transactions)
        )


def kafka_transactions(folder: Path, count: int, results: str) -> AbstractAsyncContextManager[Load]:
    """The same, each delivery a transaction."""
    return kafka(folder, count, results, transactions=True)


@asynccontextmanager
async def files(folder: Path, count: int, results: str, format_: str = "parquet") -> AsyncIterator[Load]:
    """Some files of one size in a folder."""
    from gridscore.sinks.files.settings import FilesSinkSettings

    given = {"folder": str(folder), "format": format_, "max_results": -(-count // _FILES), "max_age": "1s"}
    yield Load(FilesSinkSettings.model_validate({"from": results, **given}))


def files_jsonl(folder: Path, count: int, results: str) -> AbstractAsyncContextManager[Load]:
    """The same, as JSON lines."""
    return files(folder, count, results, "jsonl")


@asynccontextmanager
async def webhook(folder: Path, count: int, results: str, batch: int = 1) -> AsyncIterator[Load]:  # noqa: ARG001
    """A web server of its own that takes everything, each result in a request."""
    from gridscore.sinks.webhook.settings import WebhookSinkSettings

    need("aiohttp", "webhook")
    (port,) = choose_ports(1, 0)
    before = os.environ.get(_SECRET)
    os.environ[_SECRET] = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
    try:
        with LeashedProcess("benchmarks.http_hook", [HOST, str(port)], folder / "hook.log") as hook:
            await _listening(hook, port)
            settings = WebhookSinkSettings(
                results=results,
                url=f"http://{HOST}:{port}/",
                secret=(f"${{{_SECRET}}}",),
                batch=batch,
                public_only=False,
            )
            yield Load(settings, most=_ONE_BY_ONE if batch == 1 else None)
    finally:
        if before is None:
            del os.environ[_SECRET]
        else:
            os.environ[_SECRET] = before


async def _listening(hook: LeashedProcess, port: int) -> None:
    """Return when a server listens there."""
    for _ in range(_LOOKS):
        if not is_free(port):
            return
        if hook.exit_code is not None:
            break
        await asyncio.sleep(_LOOK_SECONDS)
    raise UnavailableError(f"The web server did not start:\n{hook.last_lines()}")


def webhook_batches(folder: Path, count: int, results: str) -> AbstractAsyncContextManager[Load]:
    """The same, a hundred results in a request."""
    return webhook(folder, count, results, 100)
