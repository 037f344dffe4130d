"""Settings of the PostgreSQL source and sink, and the SQL that is made of them: nothing but names gets into it."""

import psycopg
import pytest
from pydantic import ValidationError

from gridscore.errors import UsageError
from gridscore.postgres import PostgresError, failure, place_of
from gridscore.sinks.base import SinkInterruptedError
from gridscore.sinks.postgres.settings import PostgresSinkSettings
from gridscore.sinks.postgres.table import ResultTable
from gridscore.sources.postgres.settings import PostgresSourceSettings
from gridscore.sources.postgres.source import trigger_statements


def sink(**more):
    return PostgresSinkSettings(**{"from": "results.x", "database": "postgresql://db/x", "table": "scores", **more})


@pytest.mark.parametrize(
    "more",
    [
        {"table": 'scores"; DROP TABLE x; --'},
        {"table": "a.b.c"},
        {"table": ""},
        {"columns": "typed", "column": {'a"b': "text"}},
        {"columns": "typed", "column": {"a": "text DEFAULT f()"}},
        {"columns": "typed", "column": {"a": "text; DROP TABLE x"}},
        {"columns": "typed", "column": {"key": "text"}},
        {"columns": "typed", "column": {"sink_epoch": "text"}},
        {"column": {"a": "text"}},
        {"database": ""},
    ],
)
def test_what_is_no_name_or_type_is_refused(more):
    with pytest.raises(ValidationError):
        sink(**more)


def test_names_are_quoted_and_types_kept():
    table = ResultTable(
        sink(table="Shop.order", columns="typed", column={"user": "numeric(12, 2)", "at": "text[]"}), ""
    )
    assert table.statement().startswith('CREATE TABLE IF NOT EXISTS "Shop"."order" ("key" text PRIMARY KEY, ')
    assert '"user" numeric(12, 2), "at" text[], "sink_era" bigint' in table.statement()
    assert table.upsert().count("%s") == 1


def test_a_trigger_tells_the_columns_of_the_key():
    made = trigger_statements("shop.orders", "changes", ("shop", "id"))
    assert "json_build_object('shop', OLD.\"shop\", 'id', OLD.\"id\")" in made
    assert 'ON "shop"."orders"' in made


@pytest.mark.parametrize("channel", ["a'b", 'a"b', "a b", ""])
def test_a_channel_is_a_name(channel):
    with pytest.raises(ValidationError):
        PostgresSourceSettings(to="m", database="d", table="t", key=("id",), notify=channel)


def test_a_place_shows_no_secret():
    assert place_of("postgresql://user:secret@db.example.com:6543/shop?sslmode=require") == "db.example.com:6543/shop"
    assert place_of("host=db dbname=shop password=secret") == "db:5432/shop"
    assert place_of("postgresql://a%40b:secret%2F@db:1,db2:2/shop?user=a@b") == "db,db2:1,2/shop"


@pytest.mark.parametrize(
    "address",
    [
        "postgresq://me:s3cret@db/shop",
        "postgresql://me:s3cret%zz@db/shop",
        'postgresql://me:"s3cret@[db/shop',
        "postgresql://me:a@s3cret@db/shop",
        "postgresql://me:a/s3cret@db/shop",
        "host=db password=my s3cret",
    ],
)
def test_what_is_wrong_with_an_address_is_said_without_its_password(address):
    with pytest.raises(UsageError) as failure:
        place_of(address)
    assert "s3cret" not in str(failure.value)
    with pytest.raises(UsageError):
        place_of("postgresql://db/shop?nothing=1")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (psycopg.errors.AdminShutdown("x"), SinkInterruptedError),
        (psycopg.errors.DeadlockDetected("x"), SinkInterruptedError),
        (psycopg.errors.TooManyConnections("x"), SinkInterruptedError),
        (psycopg.errors.ReadOnlySqlTransaction("x"), SinkInterruptedError),
        (psycopg.errors.QueryCanceled("x"), SinkInterruptedError),
        (psycopg.OperationalError("server closed the connection unexpectedly"), SinkInterruptedError),
        (psycopg.OperationalError("SSL error: unexpected eof while reading"), SinkInterruptedError),
        (psycopg.OperationalError("FATAL: the database system is starting up"), SinkInterruptedError),
        (psycopg.OperationalError("SSL error: tlsv1 alert unknown ca"), PostgresError),
        (psycopg.errors.InsufficientPrivilege("x"), PostgresError),
        (psycopg.errors.UndefinedColumn("x"), PostgresError),
        (psycopg.OperationalError('FATAL: database "x" does not exist'), PostgresError),
        (psycopg.OperationalError("SSL error: certificate verify failed"), PostgresError),
    ],
)
def test_what_may_heal_is_told_from_what_does_not(error, kind):
    assert type(failure(error, "db:5432/x", SinkInterruptedError)) is kind
