"""A till: sends a purchase, waits for what the job beside it decides, and prints the receipt.

    python jobs/card-fraud/till.py c0012 24.90

If there is no decision in time, the till decides by itself, and the receipt says so: up to the offline limit it
approves, above it declines. What could not even be sent is kept in a file and goes along with the next purchase; as a
purchase is its own key, it is in the grid once. Exit code: 0 if approved, 1 if declined.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime as dt
import json
import os
import sys
import time
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from ulid import ULID

EVENTS, RESULTS = "events.purchases", "results.purchases"
ENTRIES = ("chip", "contactless", "stripe", "manual")
RETRY_SECONDS = 0.2
_NOT_SENT = "not sent"
TIMEOUT_CODE = 404  # a result that was not there in time
REJECTED_CODE = 422  # of an event that cannot be scored


@dataclass(frozen=True)
class Purchase:
    """What is paid, with which card."""

    number: str
    card: str
    merchant: str
    amount: Decimal
    entry: str
    at: dt.datetime

    def event(self) -> bytes:
        """As the job file's schema has it."""
        value = {
            "purchase": self.number,
            "card": self.card,
            "merchant": self.merchant,
            "amount": float(self.amount),
            "entry": self.entry,
            "time": self.at.strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        return json.dumps(value).encode()


@dataclass(frozen=True)
class Decision:
    """Whether the purchase is approved, and who said so."""

    approved: bool
    seconds: float
    result: dict[str, Any] | None  # None if the till decided by itself
    problem: str = ""


class RefusedError(Exception):
    """The other side will not take what we send, however often we do."""


class Till:
    """One till.

    Args:
        via: Where purchases go: http(s)://HOST:PORT of a source, or mqtt://HOST:PORT of a broker.
        decisions: http(s)://HOST:PORT where results can be asked for.
        timeout: Seconds from the purchase to the decision.
        offline_limit: Up to which amount the till approves by itself.
        journal: The file that keeps what could not be sent.
        token: That the source asks for.
    """

    def __init__(
        self, via: str, decisions: str, timeout: float, offline_limit: Decimal, journal: Path, token: str
    ) -> None:
        self._via, self._decisions = urlsplit(via), decisions.rstrip("/")
        self._timeout, self._offline_limit, self._journal = timeout, offline_limit, journal
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    async def decide(self, purchase: Purchase) -> Decision:
        """Send a purchase and wait for its decision; decides offline when there is none in time.

        Raises:
            RefusedError: The source does not take the purchase.
        """
        began, problem = time.monotonic(), _NOT_SENT
        async with httpx.AsyncClient(headers=self._headers, timeout=None) as http:  # noqa: S113 -- one for all, below
            try:
                async with asyncio.timeout(self._timeout):
                    kept = self._journal.read_bytes() if self._journal.exists() else b""
                    after = await self._send(http, [*kept.splitlines(), purchase.event()])
                    self._journal.unlink(missing_ok=True)
                    problem = "no decision"
                    result = await self._result(http, purchase.number, after)
                if "rejected" in result:
                    problem = f"not scored: {result['rejected']['reason']}"
                    return self._alone(purchase, began, problem)
                return Decision(result["decision"] == "approve", time.monotonic() - began, result)
            except TimeoutError:
                pass
        if problem == _NOT_SENT:
            with self._journal.open("ab") as journal:
                journal.write(purchase.event() + b"\n")
        return self._alone(purchase, began, f"{problem} in {self._timeout:g} s")

    def _alone(self, purchase: Purchase, began: float, problem: str) -> Decision:
        return Decision(purchase.amount <= self._offline_limit, time.monotonic() - began, None, problem)

    async def _send(self, http: httpx.AsyncClient, events: list[bytes]) -> int | None:
        """Returns what the decision on the last one comes after: a sequence; None if that is not known."""
        send = self._publish if self._via.scheme == "mqtt" else self._post
        while True:
            sent, after = await send(http, events)
            if sent:
                return after
            await asyncio.sleep(RETRY_SECONDS)

    async def _post(self, http: httpx.AsyncClient, events: list[bytes]) -> tuple[bool, int | None]:
        """Whether the grid has them now, or it is worth another try; and what the decision on the last comes after."""
        try:
            answer = await http.post(
                f"{self._via.geturl().rstrip('/')}/events/{EVENTS}",
                content=b"\n".join(events),
                headers={"Content-Type": "application/x-ndjson"},
            )
        except httpx.TransportError:
            return False, None
        if answer.status_code in (408, 429) or answer.status_code >= 500:
            return False, None
        if answer.status_code != 202:
            raise RefusedError(f"The source answers {answer.status_code}: {answer.text}")
        return True, answer.json().get("after", [None])[-1]

    async def _publish(self, _http: httpx.AsyncClient, events: list[bytes]) -> tuple[bool, int | None]:
        """Whether the broker has them now."""
        import aiomqtt

        try:
            async with aiomqtt.Client(
                self._via.hostname or "localhost", self._via.port or 1883, protocol=aiomqtt.ProtocolVersion.V5
            ) as broker:
                for event in events:
                    topic = f"tills/{json.loads(event)['merchant']}/purchases"
                    await broker.publish(topic, event, qos=1)
        except aiomqtt.MqttError:
            return False, None
        return True, None

    async def _result(self, http: httpx.AsyncClient, number: str, after: int | None) -> dict[str, Any]:
        """The result of a purchase, or why it is rejected."""
        query = {"wait": "5s"} if after is None else {"wait": "5s", "after": str(after)}
        while True:
            try:
                answer = await http.get(f"{self._decisions}/results/{RESULTS}/{quote(number, safe='')}", params=query)
            except httpx.TransportError:
                await asyncio.sleep(RETRY_SECONDS)
                continue
            if answer.status_code in (200, REJECTED_CODE):
                result: dict[str, Any] = answer.json()
                return result
            if answer.status_code in (401, 403) or (answer.status_code == TIMEOUT_CODE and "may not" in answer.text):
                raise RefusedError(f"The source answers {answer.status_code}: {answer.text}")
            await asyncio.sleep(RETRY_SECONDS)


def receipt(purchase: Purchase, decision: Decision, currency: str, offline_limit: Decimal) -> Panel:
    """The receipt, 44 columns wide."""
    rows = Table.grid(padding=(0, 1), expand=True)
    rows.add_column()
    rows.add_column(justify="right")
    rows.add_row("Merchant", purchase.merchant)
    rows.add_row("Date", purchase.at.astimezone().strftime("%Y-%m-%d %H:%M:%S"))
    rows.add_row("Card", f"**** {purchase.card[-4:]} ({purchase.entry})")
    rows.add_row("[bold]Amount", f"[bold]{purchase.amount:,.2f} {currency}")
    rows.add_row()
    rows.add_row("", "[bold green]APPROVED" if decision.approved else "[bold red]DECLINED")
    if decision.result is not None:
        rows.add_row("Decided", f"online in {decision.seconds * 1000:,.0f} ms")
        rows.add_row("Risk", f"{decision.result['score']:.1%} (model v{decision.result['version']})")
    else:
        rows.add_row("Decided", "OFFLINE by the till")
        rows.add_row("Reason", decision.problem)
        rows.add_row("Offline limit", f"{offline_limit:,.2f} {currency}")
    return Panel(rows, title="Receipt", subtitle=purchase.number, width=44, padding=(1, 1))


def amount(text: str) -> Decimal:
    """An amount of money: more than nothing, with no more than two decimals."""
    try:
        value = Decimal(text)
    except InvalidOperation:
        value = Decimal(0)
    if not value.is_finite() or value <= 0 or value != round(value, 2):
        raise argparse.ArgumentTypeError(f"`{text}` is not an amount: write it as 24.90")
    return value


def main() -> int:
    """One purchase from the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("card", help="the card, as in the lookup: c0012")
    parser.add_argument("amount", type=amount)
    parser.add_argument("--merchant", default="m00")
    parser.add_argument("--entry", choices=ENTRIES, default="chip")
    parser.add_argument("--at", help="when, as 2026-04-01T03:00:00Z; now if not given")
    parser.add_argument("--via", default="http://127.0.0.1:8080", help="where purchases go: http://… or mqtt://…")
    parser.add_argument("--decisions", help="where decisions come from: http://…; as --via if not given")
    parser.add_argument("--timeout", type=float, default=2.0, help="seconds to wait for the decision")
    parser.add_argument("--offline-limit", type=amount, default=Decimal("50.00"))
    parser.add_argument("--journal", type=Path, default=Path("till-offline.ndjson"), help="keeps what is not sent yet")
    parser.add_argument("--currency", default="EUR")
    arguments = parser.parse_args()
    if arguments.decisions is None and not arguments.via.startswith("http"):
        parser.error("--decisions is needed if purchases do not go by HTTP")
    at = dt.datetime.fromisoformat(arguments.at) if arguments.at else dt.datetime.now(dt.UTC)
    purchase = Purchase(
        f"{arguments.merchant}-{ULID()}", arguments.card, arguments.merchant, arguments.amount, arguments.entry, at
    )
    till = Till(
        arguments.via,
        arguments.decisions or arguments.via,
        arguments.timeout,
        arguments.offline_limit,
        arguments.journal,
        os.environ.get("TILL_TOKEN", ""),
    )
    try:
        decision = asyncio.run(till.decide(purchase))
    except RefusedError as error:
        print(error, file=sys.stderr)
        return 2
    Console().print(receipt(purchase, decision, arguments.currency, arguments.offline_limit))
    return 0 if decision.approved else 1


if __name__ == "__main__":
    sys.exit(main())
