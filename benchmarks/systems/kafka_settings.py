"""Settings of Kafka clients that the consumer loop and Quix Streams have in common."""

BATCH_EVENTS = 4_096

CONSUMER = {
    "fetch.min.bytes": 1,
    "fetch.wait.max.ms": 100,
    "queued.min.messages": 100_000,
    "max.partition.fetch.bytes": 4 << 20,
    "check.crcs": False,
}
PRODUCER = {
    "acks": "all",
    "enable.idempotence": True,
    "linger.ms": 1,
    "batch.size": 1 << 20,
    "queue.buffering.max.messages": 1_000_000,
}
