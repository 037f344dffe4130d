"""The Kafka source."""

from gridscore.job.plugs.kinds import PlugKind

PLUG = PlugKind(
    "kafka",
    settings="gridscore.sources.kafka.settings:KafkaSourceSettings",
    plug="gridscore.sources.kafka.source:KafkaSource",
    summary="Messages of a Kafka topic.",
    example="--brokers localhost:9092 --topic payments --to events.payments",
    extra="kafka",
)
