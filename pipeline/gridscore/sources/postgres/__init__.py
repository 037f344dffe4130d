"""The PostgreSQL source."""

from gridscore.job.plugs.kinds import PlugKind

PLUG = PlugKind(
    "postgres",
    settings="gridscore.sources.postgres.settings:PostgresSourceSettings",
    plug="gridscore.sources.postgres.source:PostgresSource",
    summary="Rows of a PostgreSQL table or query, loaded once or kept current.",
    example=(
        "--database 'postgresql://app:${DB_PASSWORD}@localhost/shop' --table customers --key id --to lookups.customers"
    ),
    extra="postgres",
)
