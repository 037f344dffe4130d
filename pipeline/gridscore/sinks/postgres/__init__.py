"""The PostgreSQL sink."""

from gridscore.job.plugs.kinds import PlugKind

PLUG = PlugKind(
    "postgres",
    settings="gridscore.sinks.postgres.settings:PostgresSinkSettings",
    plug="gridscore.sinks.postgres.sink:PostgresSink",
    summary="Rows of a PostgreSQL table: the newest result of each key.",
    example=("--from results.payments --database 'postgresql://app:${DB_PASSWORD}@localhost/shop' --table scores"),
    extra="postgres",
)
