"""A source and a sink of another distribution: rows of a SQLite table."""

from gridscore.job.plugs.kinds import PlugKind

SOURCE = PlugKind(
    "sqlite",
    settings="gridscore_sqlite.settings:SqliteSourceSettings",
    plug="gridscore_sqlite.source:SqliteSource",
    summary="Rows of a SQLite table, by ascending id.",
    example="--path shop.db --table payments --to events.payments",
    distribution="gridscore-sqlite",
)

SINK = PlugKind(
    "sqlite",
    settings="gridscore_sqlite.settings:SqliteSinkSettings",
    plug="gridscore_sqlite.sink:SqliteSink",
    summary="The newest result of each key, in a SQLite table.",
    example="--from results.payments --path shop.db --table scores",
    distribution="gridscore-sqlite",
)
