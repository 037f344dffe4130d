"""The sensors: sends readings by MQTT: `python jobs/machine-health/sensors.py data/later.csv`.

Each goes to the topic `plant/MACHINE/readings`, which says whose it is, with QoS 1: the broker has acknowledged all of
them when this ends.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from urllib.parse import urlsplit

import paho.mqtt.client as mqtt
import pandas as pd

WAIT_SECONDS = 60.0


def main() -> None:
    """Send readings from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("readings", type=Path, help="a table that data.py has written")
    parser.add_argument("--broker", default="mqtt://localhost:1883")
    arguments = parser.parse_args()
    address = urlsplit(arguments.broker)
    frame = pd.read_csv(arguments.readings).drop(columns="remaining")
    frame = frame.astype(object).where(frame.notna(), None)
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
    client.connect(address.hostname or "localhost", address.port or 1883)
    client.loop_start()
    sent = []
    for reading in frame.to_dict("records"):
        topic = f"plant/{reading.pop('machine')}/readings"
        sent.append(client.publish(topic, json.dumps(reading), qos=1))
    for each in sent:
        each.wait_for_publish(WAIT_SECONDS)
    acknowledged = sum(each.is_published() for each in sent)
    client.disconnect()
    client.loop_stop()
    if acknowledged < len(sent):
        raise SystemExit(f"error: the broker has acknowledged {acknowledged:,} of {len(sent):,} readings.")
    print(f"{acknowledged:,} readings sent to {arguments.broker}")


if __name__ == "__main__":
    main()
