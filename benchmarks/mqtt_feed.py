"""Publishes events with QoS 1, in its own process: `python -m benchmarks.mqtt_feed PORT TOPIC COUNT`."""

from __future__ import annotations

import sys
import threading

from paho.mqtt.client import Client, MQTTv5
from paho.mqtt.enums import CallbackAPIVersion

from gridscore.grid.ports import HOST
from gridscore.proving.bench import card

TOPICS = 50
UNACKNOWLEDGED = 500


def main() -> None:
    """Publish everything, with some hundred messages at once that the broker has not acknowledged yet."""
    port, topic, count = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTv5)
    client.max_inflight_messages_set(UNACKNOWLEDGED)
    room, connected = threading.Semaphore(UNACKNOWLEDGED), threading.Event()
    client.on_connect = lambda *_: connected.set()
    client.on_publish = lambda *_: room.release()
    client.connect(HOST, port)
    client.loop_start()
    connected.wait(30)
    for number, (_, text) in enumerate(card.events(count)):
        room.acquire()
        client.publish(f"{topic}/{number % TOPICS}", text, qos=1)
    for _ in range(UNACKNOWLEDGED):
        room.acquire()
    client.disconnect()
    client.loop_stop()


if __name__ == "__main__":
    main()
