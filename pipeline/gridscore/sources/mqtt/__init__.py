"""The MQTT source."""

from gridscore.job.plugs.kinds import PlugKind

PLUG = PlugKind(
    "mqtt",
    settings="gridscore.sources.mqtt.settings:MqttSourceSettings",
    plug="gridscore.sources.mqtt.source:MqttSource",
    summary="Messages of an MQTT broker's topics.",
    example="--broker mqtt://localhost:1883 --topic 'tills/+/purchases' --key purchase --to events.purchases",
    extra="mqtt",
)
