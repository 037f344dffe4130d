"""A connection to an MQTT broker whose messages are acknowledged when we say so, on asyncio's event loop.

Paho's client does the protocol. It is driven from its socket's readiness, so there are no threads but for connecting.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from gridscore.errors import GridscoreError, RefusedError, UsageError
from gridscore.job.types import seconds_of
from gridscore.sources.base import SourceInterruptedError
from gridscore.sources.mqtt.packets import Message, read_message

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from paho.mqtt.client import SocketLike
    from paho.mqtt.reasoncodes import ReasonCode

    from gridscore.sources.mqtt.settings import MqttSourceSettings

ANSWER_SECONDS = 15.0  # how long the broker may take to let us in, and to subscribe us
CLOSE_SECONDS = 1.0  # how long the broker may take to get what we have to say at the end
# Bytes of messages that may wait to be taken before no more is read: a broker may let each have 256 MiB.
MOST_BYTES = 64 << 20

_MISC_SECONDS = 1.0
_AT_HIGH = 2  # times what may be in flight: brokers of MQTT 3.1.1 do not know how much we want
_READS_AT_ONCE = 500
_READ_BYTES = 1 << 16
_BESIDE_BYTES = 1 << 17  # of a packet: a topic has 64 KiB at most

# Reason codes of MQTT 5 section 2.4; paho gives those of 3.1.1 the same names.
_BAD_CREDENTIALS = {0x86, 0x87, 0x8C}
_BAD_CLIENT_ID = 0x85
_BAD_PROTOCOL = {0x84, 0x81, 0x82}
_TAKEN_OVER = 0x8E
_REFUSED = 0x80
_NOT_MQTT = 0x82


class _Client(mqtt.Client):
    """Paho's client, but for what becomes of messages, and for a sign of life while nothing is read.

    Its manual acknowledgement leaves messages with QoS 2 out: it answers for them before the grid has them. It ends the
    connection over a user property that it does not like (with U+FEFF, which MQTT allows), each time that the message
    comes again. And it reads all properties of all messages, in time that grows with the square of their number.
    """

    arrived: Callable[[Message], None]
    answered: Callable[[], None]
    most = 0  # bytes of a packet that are kept: it may have 256 MiB

    def _sock_recv(self, bufsize: int) -> bytes:
        del self._in_packet["packet"][self.most :]
        return super()._sock_recv(min(bufsize, _READ_BYTES))

    def _handle_publish(self) -> MQTTErrorCode:
        packet, five = self._in_packet, self._protocol == MQTTProtocolVersion.MQTTv5
        del packet["packet"][self.most :]
        body = bytes(packet["packet"])
        self.arrived(read_message(packet["command"], body, packet["remaining_length"], five=five))
        return MQTTErrorCode.MQTT_ERR_SUCCESS

    def _handle_pingresp(self) -> MQTTErrorCode:
        self.answered()
        return super()._handle_pingresp()

    def confirm(self, receipts: bytes) -> None:
        self._packet_queue(mqtt.PUBACK, receipts, 0, 1)

    def ping(self) -> None:
        """By itself the library would wait for the answer."""
        self._send_simple_command(mqtt.PINGREQ)

    def drop(self) -> None:
        self._sock_close()


class MqttLink:
    """One connection. Made anew for each attempt. `client_id`: under which the broker keeps our session."""

    def __init__(self, settings: MqttSourceSettings, client_id: str) -> None:
        self._settings = settings
        self._client_id = client_id
        self._loop = asyncio.get_running_loop()
        self._five = settings.protocol == "5"
        self._client = self._new_client()
        self._misc: asyncio.Task[None] | None = None
        self._connected: asyncio.Future[tuple[ReasonCode, Any]] = self._loop.create_future()
        self._filters: Sequence[str] = ()
        self._arrived = asyncio.Event()
        self._lost: GridscoreError | None = None
        self._in_flight = 0  # not acknowledged
        self._loose = 0  # with QoS 0, not taken yet
        self._bytes = 0  # of messages that are not taken yet
        self._paused = self._closing = False
        self._done = asyncio.Event()
        self._ping_seconds, self._pinged_at = seconds_of(settings.keep_alive) / 2, 0.0
        self._messages: list[Message] = []

    async def connect(self) -> None:
        """Connect, and take up our session.

        Raises SourceInterruptedError if the broker cannot be reached, or is not ready; GridscoreError if it refuses us,
        or is not the one that it should be.
        """
        settings, url = self._settings, urlsplit(self._settings.broker)
        host, port = url.hostname or "", url.port or (8883 if url.scheme == "mqtts" else 1883)
        if url.scheme == "mqtts":
            self._client.tls_set_context(_tls(settings))
        if settings.username is not None:
            self._client.username_pw_set(settings.username, settings.password)
        properties = None
        if self._five:
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            properties.SessionExpiryInterval = min(int(seconds_of(settings.session)), 0xFFFFFFFF)
            properties.ReceiveMaximum = settings.in_flight
        self._client.connect_timeout = ANSWER_SECONDS
        try:
            await asyncio.to_thread(
                self._client.connect,
                host,
                port,
                int(seconds_of(settings.keep_alive)),
                clean_start=False if self._five else mqtt.MQTT_CLEAN_START_FIRST_ONLY,
                properties=properties,
            )
        except (OSError, ValueError) as error:
            raise _connect_error(settings.broker, error) from error
        # Not before: the library would call them in the thread that connects.
        self._client.on_socket_register_write = self._on_unwritten
        self._client.on_socket_unregister_write = self._on_written
        self._client.on_socket_close = self._on_close
        link = self._client.socket()
        if link is None:
            raise SourceInterruptedError(f"{settings.broker} has closed the connection.", "Is it an MQTT broker?")
        self._loop.add_reader(link, self._read)
        if self._client.want_write():
            self._on_unwritten(None, None, link)
        self._misc = asyncio.create_task(self._keep_alive())
        try:
            reason, granted = await asyncio.wait_for(self._connected, ANSWER_SECONDS)
        except TimeoutError:
            raise SourceInterruptedError(
                f"{settings.broker} took the connection, but did not answer in {ANSWER_SECONDS:.0f} s.",
                "Is it an MQTT broker, and does it speak TLS where you asked for it?",
            ) from None
        if reason.is_failure:
            raise _refusal(settings, self._client_id, reason)
        if granted is not None:
            if self._settings.group and getattr(granted, "SharedSubscriptionAvailable", 1) == 0:
                raise UsageError(f"{settings.broker} has no shared subscriptions.", "Leave out `group`.")
            if getattr(granted, "MaximumQoS", 2) == 0:
                raise UsageError(f"{settings.broker} has only QoS 0: it would not repeat what we have not confirmed.")

    async def subscribe(self, filters: Sequence[str]) -> None:
        """Subscribe with QoS 1; what the session holds comes at once, with some brokers even before their answer.

        Raises SourceInterruptedError if the broker did not answer; GridscoreError if it refuses a topic.
        """
        # A retained message comes when a subscription is new, not each time that we connect.
        options = SubscribeOptions(qos=1, retainHandling=SubscribeOptions.RETAIN_SEND_IF_NEW_SUB)
        topics: Any = [(each, options if self._five else 1) for each in filters]
        self._filters = filters
        self._client.subscribe(topics)
        try:
            await asyncio.wait_for(self._arrived.wait(), ANSWER_SECONDS)
        except TimeoutError:
            raise SourceInterruptedError(f"{self._settings.broker} does not answer a subscription.") from None
        self.check()

    async def wait(self) -> None:
        """Wait for messages.

        Raises SourceInterruptedError if the connection is lost; the session keeps what was not acknowledged;
        GridscoreError if another client has taken our place.
        """
        while self._lost is None and not self._messages:
            self._arrived.clear()
            await self._arrived.wait()
        self.check()

    def check(self) -> None:
        """Raise what `wait` does, if the connection is lost already."""
        if self._lost is not None:
            raise self._lost

    def take(self) -> list[Message]:
        taken, self._messages = self._messages, []
        self._loose = self._bytes = 0
        self._go_on()
        return taken

    def acknowledge(self, receipts: Sequence[bytes]) -> None:
        """Confirm messages, in the order in which they came.

        Raises SourceInterruptedError if the connection is lost; they will come again.
        """
        self.check()
        if receipts:
            self._client.confirm(b"".join(receipts))
            self._in_flight -= len(receipts)
        self._go_on()

    async def close(self) -> None:
        """End the connection; the session stays."""
        self._closing = True
        if self._misc is not None:
            self._misc.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._misc
        if self._lost is None:
            if self._filters:
                # A broker that finds us gone when it sends more does not look at our last receipts. Its answer to this
                # says that it has them; what comes meanwhile comes again.
                self._client.ping()
                self._in_flight = self._loose = self._bytes = 0
                self._go_on()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._done.wait(), CLOSE_SECONDS)
            self._client.disconnect()
            self._client.loop_write()
        self._client.drop()

    # ------------------------------------------------------------------ paho's side

    def _new_client(self) -> _Client:
        client = _Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._client_id,
            clean_session=None if self._five else False,
            protocol=MQTTProtocolVersion.MQTTv5 if self._five else MQTTProtocolVersion.MQTTv311,
            reconnect_on_failure=False,
        )
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_disconnect = self._on_disconnect
        client.arrived, client.answered = self._on_message, self._on_answer
        client.most = self._settings.max_event + _BESIDE_BYTES
        return client

    def _on_connect(self, _client: Any, _data: Any, _flags: Any, reason: ReasonCode, properties: Any) -> None:
        if not self._connected.done():
            self._connected.set_result((reason, properties))

    def _on_subscribe(self, _client: Any, _data: Any, _mid: int, reasons: list[ReasonCode], _properties: Any) -> None:
        for each, reason in zip(self._filters, reasons, strict=False):
            if reason.value >= _REFUSED:
                self._fail(
                    RefusedError(
                        f"{self._settings.broker} refuses the topic `{each}`: {reason}.",
                        "May this user read it? Does the broker allow wildcards and shared subscriptions?",
                    )
                )
            elif reason.value == 0:
                self._fail(
                    UsageError(
                        f"{self._settings.broker} grants only QoS 0 for the topic `{each}`: it would not repeat what "
                        "we have not confirmed.",
                        "Let the broker allow QoS 1 there.",
                    )
                )
        self._arrived.set()

    def _on_answer(self) -> None:
        if self._closing:
            self._done.set()

    def _on_disconnect(self, _client: Any, _data: Any, flags: Any, reason: ReasonCode, _properties: Any) -> None:
        if not self._closing:
            if self._five and reason.value == _TAKEN_OVER:
                self._fail(_taken_over(self._settings, self._client_id))
            elif reason.value == _NOT_MQTT and self._connected.done() and not flags.is_disconnect_packet_from_server:
                self._fail(SourceInterruptedError(f"What comes from {self._settings.broker} is not MQTT."))
            else:
                why = f": {reason}" if reason.value != _REFUSED else ""  # 0x80 says nothing
                self._fail(SourceInterruptedError(f"The connection to {self._settings.broker} is lost{why}."))
        self._done.set()

    def _fail(self, error: GridscoreError) -> None:
        self._lost = self._lost or error
        if not self._connected.done():
            self._connected.set_exception(self._lost)
            self._connected.exception()  # nobody may be waiting for it any more
        self._arrived.set()

    def _on_message(self, message: Message) -> None:
        if self._closing:
            return
        self._messages.append(message)
        self._bytes += len(message.payload)
        if message.receipt:
            self._in_flight += 1
        else:
            self._loose += 1
        if self._in_flight + self._loose >= _AT_HIGH * self._settings.in_flight or self._bytes > MOST_BYTES:
            self._paused = True
            if (link := self._client.socket()) is not None:
                self._loop.remove_reader(link)
        self._arrived.set()

    # ------------------------------------------------------------------ the socket

    def _read(self) -> None:
        for _ in range(_READS_AT_ONCE):
            before = len(self._messages)
            if self._paused or self._client.loop_read() != MQTTErrorCode.MQTT_ERR_SUCCESS:
                return
            if len(self._messages) == before:
                break
        if isinstance(link := self._client.socket(), ssl.SSLSocket) and link.pending():
            self._loop.call_soon(self._read)  # the system does not say again that there is what TLS holds

    def _go_on(self) -> None:
        if self._paused and self._in_flight + self._loose < self._settings.in_flight:
            self._paused = False
            if (link := self._client.socket()) is not None:
                self._loop.add_reader(link, self._read)
                self._loop.call_soon(self._read)  # for what TLS holds

    def _on_unwritten(self, _client: Any, _data: Any, link: SocketLike) -> None:
        self._loop.add_writer(link, self._client.loop_write)

    def _on_written(self, _client: Any, _data: Any, link: SocketLike) -> None:
        self._loop.remove_writer(link)

    def _on_close(self, _client: Any, _data: Any, link: SocketLike) -> None:
        self._loop.remove_reader(link)

    async def _keep_alive(self) -> None:
        while self._lost is None:
            await asyncio.sleep(_MISC_SECONDS)
            if not self._paused:
                self._client.loop_misc()
            elif time.monotonic() - self._pinged_at > self._ping_seconds:
                self._pinged_at = time.monotonic()
                self._client.ping()


def _tls(settings: MqttSourceSettings) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=settings.ca_file)
        if settings.certificate is not None:
            context.load_cert_chain(settings.certificate, settings.private_key)
    except (OSError, ssl.SSLError) as error:
        raise UsageError(
            f"The certificates for {settings.broker} cannot be read: {error}",
            "Look at ca_file, certificate and private_key.",
        ) from error
    return context


def _connect_error(broker: str, error: Exception) -> GridscoreError:
    if isinstance(error, ssl.SSLCertVerificationError):
        return RefusedError(
            f"The certificate of {broker} is not trusted: {error.verify_message}",
            "Name the certificate of who has signed it as `ca_file`, and the host as the certificate has it.",
        )
    if isinstance(error, ssl.SSLError):
        return RefusedError(f"{broker} does not speak TLS, or wants another certificate of us: {error.reason}.")
    if isinstance(error, socket.gaierror):
        return SourceInterruptedError(f"The host of {broker} is not known: {error.strerror}.")
    if isinstance(error, OSError):
        return SourceInterruptedError(f"{broker} cannot be reached: {error.strerror or error or 'no answer'}.")
    return UsageError(f"{broker}: {error}")


def _refusal(settings: MqttSourceSettings, client_id: str, reason: ReasonCode) -> GridscoreError:
    code, broker = reason.value, settings.broker
    if code in _BAD_CREDENTIALS:
        if settings.username is None:
            return RefusedError(f"{broker} wants a user name: {reason}.", "Give `username` and `password`.")
        return RefusedError(f"{broker} refuses the user `{settings.username}`: {reason}.", "Look at the password.")
    if code == _BAD_CLIENT_ID:
        return UsageError(f"{broker} refuses the client id `{client_id}`.", "Give another as `client_id`.")
    if code in _BAD_PROTOCOL:
        other = "3.1.1" if settings.protocol == "5" else "5"
        return UsageError(f"{broker} does not speak MQTT {settings.protocol}: {reason}.", f"Try `protocol` {other}.")
    return SourceInterruptedError(f"{broker} does not let us in now: {reason}.")


def _taken_over(settings: MqttSourceSettings, client_id: str) -> GridscoreError:
    return UsageError(
        f"Another client of {settings.broker} has the client id `{client_id}`, too, and has taken our place.",
        "Give each process a `client_id` of its own, with `group` to share the messages.",
    )
