"""A real Kafka broker for tests, with what they do with it: topics, messages in, messages out."""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    NewTopic,
    ResourcePatternType,
    ResourceType,
)

from gridscore.testing.kafka import Broker

if TYPE_CHECKING:
    from pathlib import Path

USER, PASSWORD = "alice", "secret"


@dataclass
class Kafka:
    """A broker, and the file of the certificate to trust it by."""

    broker: Broker
    ca_file: Path

    @property
    def address(self) -> str:
        return self.broker.address

    @property
    def common(self) -> dict[str, Any]:
        return {"bootstrap.servers": self.address, "log_level": 0}

    def create(self, topic: str, partitions: int = 2, **config: str) -> str:
        admin = AdminClient(self.common)
        admin.create_topics([NewTopic(topic, partitions, 1, config=config)])[topic].result(30)
        self.wait_for(topic)
        return topic

    def wait_for(self, topic: str) -> None:
        """The answer comes when the controller has decided; a client may still be told that there is no such topic."""
        admin = AdminClient(self.common)
        deadline = time.monotonic() + 30
        while True:
            found = admin.list_topics(topic, timeout=10).topics[topic]
            if found.partitions and all(each.leader >= 0 for each in found.partitions.values()):
                return
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def topics(self) -> set[str]:
        return set(AdminClient(self.common).list_topics(timeout=10).topics)

    def deny(self, topic: str, user: str) -> None:
        acl = AclBinding(
            ResourceType.TOPIC,
            topic,
            ResourcePatternType.LITERAL,
            f"User:{user}",
            "*",
            AclOperation.ALL,
            AclPermissionType.DENY,
        )
        admin = AdminClient(self.common)  # which must live as long as its answers are waited for
        admin.create_acls([acl])[acl].result(30)

    def delete_records(self, topic: str, partition: int, before: int) -> None:
        place = TopicPartition(topic, partition, before)
        admin = AdminClient(self.common)
        for answer in admin.delete_records([place]).values():
            answer.result(30)

    def forget_group(self, group: str) -> None:
        """As Kafka does with the positions of a group that was away for long."""
        admin = AdminClient(self.common)
        admin.delete_consumer_groups([group])[group].result(30)

    def produce(self, topic: str, messages: list[tuple[Any, Any]], *, partition: int = -1, headers: Any = None) -> None:
        producer = Producer({**self.common, "acks": "all", "queue.buffering.max.messages": 1_000_000})
        failed = []
        for key, value in messages:
            producer.produce(
                topic, value, key, partition, headers=headers, on_delivery=lambda e, _: failed.append(e) if e else None
            )
        assert producer.flush(30) == 0
        assert not failed

    def messages(self, topic: str, *, level: str = "read_committed") -> list[Any]:
        """Everything in a topic now, in order in each partition."""
        consumer = Consumer(
            {
                **self.common,
                "group.id": "test",
                "enable.auto.commit": False,
                "isolation.level": level,
                "enable.partition.eof": True,
            }
        )
        try:
            numbers = consumer.list_topics(topic, timeout=10).topics[topic].partitions
            consumer.assign([TopicPartition(topic, number, 0) for number in numbers])
            found, ended = [], set()
            while len(ended) < len(numbers):
                for message in consumer.consume(1000, 0.2):
                    if message.error() is None:
                        found.append(message)
                    else:
                        ended.add(message.partition())
            return found
        finally:
            consumer.close()

    def committed(self, topic: str, group: str) -> dict[int, int]:
        consumer = Consumer({**self.common, "group.id": group})
        try:
            numbers = consumer.list_topics(topic, timeout=10).topics[topic].partitions
            found = consumer.committed([TopicPartition(topic, number) for number in numbers], timeout=10)
            return {each.partition: each.offset for each in found if each.offset >= 0}
        finally:
            consumer.close()


def start(folder: Path) -> Kafka:
    """A broker with a user and a certificate of its own."""
    import trustme

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # cryptography's, about what others may do with it
        from cryptography.hazmat.primitives.serialization import (
            Encoding,
            NoEncryption,
            PrivateFormat,
            load_pem_private_key,
        )
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    key = load_pem_private_key(certificate.private_key_pem.bytes(), None)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "broker.pem").write_bytes(pem + b"".join(each.bytes() for each in certificate.cert_chain_pems))
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    broker = Broker.start(folder, heap="512m", users={USER: PASSWORD}, certificate=folder / "broker.pem")
    return Kafka(broker, folder / "ca.pem")
