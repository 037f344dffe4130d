"""The Redis source."""

from gridscore.job.plugs.kinds import PlugKind

PLUG = PlugKind(
    "redis",
    settings="gridscore.sources.redis.settings:RedisSourceSettings",
    plug="gridscore.sources.redis.source:RedisSource",
    summary="Entries of a Redis stream.",
    example="--server redis://localhost:6379 --stream payments --number amount --to events.payments",
    extra="redis",
)
