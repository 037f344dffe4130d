"""What integration tests share: servers of others, each started for the first test that wants it."""

from chromium import browser
from mqtt_server import certificates, guarded_mqtt, mosquitto, mqtt
from postgres_server import database, postgres
from redis_server import redis_server
from small_ring import small_ring

__all__ = [
    "browser",
    "certificates",
    "database",
    "guarded_mqtt",
    "mosquitto",
    "mqtt",
    "postgres",
    "redis_server",
    "small_ring",
]
