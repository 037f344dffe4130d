"""The Kafka sink."""

from gridscore.job.plugs.kinds import PlugKind

PLUG = PlugKind(
    "kafka",
    settings="gridscore.sinks.kafka.settings:KafkaSinkSettings",
    plug="gridscore.sinks.kafka.sink:KafkaSink",
    summary="Messages of a Kafka topic.",
    example="--from results.payments --brokers localhost:9092 --topic scores",
    extra="kafka",
)
