"""What the Kafka source and sink share: how a client is configured, what its errors mean, and a look at a topic."""

from __future__ import annotations

import re
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient, ConfigResource  # type: ignore[attr-defined]  # its own door

from gridscore.errors import GridscoreError, RefusedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

ANSWER_SECONDS = 10.0  # how long a broker may take to answer
_POLL_SECONDS = 0.05
_LEFT_TO_TELL = 3.0  # a client that cannot connect tries every second at first: its errors say more than a time-out

_Interrupted = type[GridscoreError]
_Client = TypeVar("_Client")


class KafkaRefusedError(RefusedError):
    """Kafka refuses what is asked, and is likely to do so again: credentials, a certificate, a topic, a right."""

    exit_code = 3


_CREDENTIALS = {
    KafkaError._AUTHENTICATION,  # noqa: SLF001 -- how the library names its constants
    KafkaError.SASL_AUTHENTICATION_FAILED,
    KafkaError.UNSUPPORTED_SASL_MECHANISM,
    KafkaError.ILLEGAL_SASL_STATE,
}
_RIGHTS = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED: "the topic",
    KafkaError.GROUP_AUTHORIZATION_FAILED: "the consumer group",
    KafkaError.CLUSTER_AUTHORIZATION_FAILED: "the cluster",
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED: "the transactional id",
}
_NO_TOPIC = {
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._UNKNOWN_TOPIC,  # noqa: SLF001
    KafkaError._UNKNOWN_PARTITION,  # noqa: SLF001
}
_WRONG = {
    KafkaError._INVALID_ARG,  # noqa: SLF001
    KafkaError.INVALID_CONFIG,
    KafkaError._UNSUPPORTED_FEATURE,  # noqa: SLF001
    KafkaError.UNSUPPORTED_VERSION,
}


def permanent(error: KafkaError, topic: str) -> KafkaRefusedError | None:
    """What an error says that trying again would not heal; None if it may.

    `error`: as the client gives it; `topic`: that is read or written.
    """
    code, text = error.code(), _plain(error)
    if code in _CREDENTIALS:
        return KafkaRefusedError(
            f"Kafka refuses the credentials: {text}",
            "Check `sasl.mechanism`, `sasl.username` and `sasl.password` (--set, or `set:` in the job file).",
        )
    if code == KafkaError._SSL and "certificate" in text:  # noqa: SLF001
        return KafkaRefusedError(
            f"Kafka's certificate, or ours, is not accepted: {text}",
            "`ssl.ca.location` names the file with the certificates to trust (--set ssl.ca.location=ca.pem).",
        )
    if code in _RIGHTS:
        return KafkaRefusedError(
            f"Kafka does not allow this user to use {_RIGHTS[code]} (`{topic}`): {text}",
            "Give the user these rights; the documentation lists all that are needed.",
        )
    if code in _NO_TOPIC:
        return KafkaRefusedError(
            f"There is no topic `{topic}` in this Kafka cluster.",
            "Create it, or check its name: topics are not created.",
        )
    if code in _WRONG:
        return KafkaRefusedError(
            f"Kafka's client refuses its settings: {text}",
            "The names and values are those of librdkafka's CONFIGURATION.",
        )
    return None


def failure(error: KafkaError, topic: str, interrupted: _Interrupted) -> GridscoreError:
    """The error to raise: permanent, or one that says that trying again may heal it."""
    return permanent(error, topic) or interrupted(f"Kafka: {_plain(error)}")


@contextmanager
def taking_reports() -> Iterator[None]:
    """Around what takes a producer's reports: a fatal error is raised as itself.

    The client library sets it as the exception of the call, and still calls the reports that come behind it. For
    Python, these have then returned with an exception set, which is a SystemError.
    """
    try:
        yield
    except SystemError as error:
        cause: BaseException | None = error
        while isinstance(cause, SystemError):
            cause = cause.__cause__
        if isinstance(cause, KafkaException):
            raise cause from None
        raise


class Complaints:
    """What a client says on its own (`error_cb`): connections, credentials, certificates.

    `topic`: for messages; `refusal`: what trying again would not heal, if there was any; `trouble`: the last of the
    others; `down`: no broker can be reached, as far as is known; `fatal`: the client can be used no more.
    """

    def __init__(self, topic: str) -> None:
        self.topic = topic
        self.refusal: KafkaRefusedError | None = None
        self.trouble = ""
        self.down = self.fatal = False

    def __call__(self, error: KafkaError) -> None:
        self.refusal = self.refusal or permanent(error, self.topic)
        if error.code() == KafkaError._ALL_BROKERS_DOWN:  # noqa: SLF001
            self.down = True
        else:
            self.trouble = _plain(error)
        self.fatal = self.fatal or error.fatal()

    def raise_refusal(self) -> None:
        """Raise the refusal, once: one broker of several may have refused us, or Kafka may know us again.

        Raises KafkaRefusedError if there was one.
        """
        refusal, self.refusal = self.refusal, None
        if refusal is not None:
            raise refusal

    def check(self, interrupted: _Interrupted) -> None:
        """Raise what makes it useless to go on.

        Raises KafkaRefusedError if trying again would not heal it; `interrupted` if no broker can be
        reached.
        """
        self.raise_refusal()
        if self.down or self.fatal:
            self.down = False
            raise interrupted(f"No broker of Kafka can be reached: {self.trouble}")


def client_settings(
    brokers: Sequence[str], given: Mapping[str, str], ours: Mapping[str, Any], complaints: Complaints
) -> dict[str, Any]:
    """Properties of a client: ours, over which go those that were given."""
    return {
        "bootstrap.servers": ",".join(brokers),
        # What it has to say comes as errors and complaints; its log would say it again, each second.
        "log_level": 0,
        "error_cb": complaints,
        **ours,
        **given,
    }


def made(kind: Callable[[dict[str, Any]], _Client], settings: dict[str, Any], topic: str) -> _Client:
    """A client. Raises KafkaRefusedError if its settings are refused."""
    try:
        return kind(settings)
    except KafkaException as error:
        raise failure(error.args[0], topic, KafkaRefusedError) from None
    except (TypeError, ValueError) as error:
        raise KafkaRefusedError(f"Kafka's client refuses its settings: {error}") from None


class TopicProbe:
    """Looks at a topic; never makes one.

    `settings`: of a client; `topic`: the topic; `interrupted`: what to raise if trying again may help.
    """

    def __init__(self, settings: dict[str, Any], topic: str, interrupted: _Interrupted) -> None:
        self._topic = topic
        self._interrupted = interrupted
        self._complaints = Complaints(topic)
        self._admin = made(AdminClient, {**settings, "error_cb": self._complaints}, topic)

    def partitions(self, seconds: float = ANSWER_SECONDS) -> int:
        """How many partitions the topic has. Blocks for so many seconds at most.

        Raises KafkaRefusedError if there is no such topic, or credentials, certificate or rights are wrong;
        GridscoreError: `interrupted`: no broker answers.
        """
        complaints, topic = self._complaints, self._topic
        asked = self._admin.describe_topics(TopicCollection([topic]), request_timeout=seconds)[topic]
        began = time.monotonic()
        while not asked.done():
            self._admin.poll(_POLL_SECONDS)
            complaints.raise_refusal()
            if complaints.down and time.monotonic() - began > _LEFT_TO_TELL:
                complaints.check(self._interrupted)
        try:
            return len(asked.result().partitions)
        except KafkaException as error:
            complaints.check(self._interrupted)
            raise failure(error.args[0], topic, self._interrupted) from None


def partitions_of(settings: dict[str, Any], topic: str, interrupted: _Interrupted) -> int:
    """How many partitions a topic has, asked once; see `TopicProbe.partitions`."""
    return TopicProbe(settings, topic, interrupted).partitions()


def largest_message(settings: dict[str, Any], topic: str, otherwise: int) -> int:
    """Bytes of the largest message, or batch of messages, that a topic takes. Blocks.

    `settings`: of a client; `topic`: the topic; `otherwise`: what to give if Kafka does not tell: not every user may
    ask.
    """
    admin = made(AdminClient, settings, topic)
    resource = ConfigResource(ConfigResource.Type.TOPIC, topic)
    try:
        found = admin.describe_configs([resource], request_timeout=ANSWER_SECONDS)[resource].result()
        return int(found["max.message.bytes"].value)
    except (KafkaException, KeyError, ValueError):
        return otherwise


def _plain(error: KafkaError) -> str:
    return re.sub(r" \(after \d+ms in state \w+.*\)$", "", error.str())
