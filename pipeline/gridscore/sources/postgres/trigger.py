"""The trigger that tells of a table's changes: which key changed, not what the row is now."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gridscore.job.plugs.postgres import quoted

if TYPE_CHECKING:
    from collections.abc import Sequence


def statements(table: str, channel: str, key: Sequence[str]) -> str:
    """SQL that makes the function and the triggers, or makes them anew (PostgreSQL 14 or later).

    A notification is a JSON object of the key's columns. It is empty, for "look at all of it", when the table was
    truncated, or when a key is too long for one: the transaction of whoever changes the table must not fail for it.

    Args:
        table: `table` or `schema.table`.
        channel: To notify.
        key: Columns of the key.
    """
    schema, _, name = table.rpartition(".")
    function = quoted(".".join(filter(None, (schema, f"gridscore_{channel}_{name}"[:63]))))
    trigger, truncated = (quoted(f"gridscore_{channel}{end}"[:63]) for end in ("", "_truncate"))

    def tell(row: str) -> str:
        fields = ", ".join(f"'{column}', {row}.{quoted(column)}" for column in key)
        return (
            f"PERFORM pg_notify('{channel}', CASE WHEN octet_length(t) < 7000 THEN t ELSE '' END) "
            f"FROM (SELECT json_build_object({fields})::text AS t) AS told;"
        )

    return f"""\
CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP = 'TRUNCATE' THEN
    PERFORM pg_notify('{channel}', '');
    RETURN NULL;
  END IF;
  IF TG_OP <> 'INSERT' THEN
    {tell("OLD")}
  END IF;
  IF TG_OP <> 'DELETE' THEN
    {tell("NEW")}
  END IF;
  RETURN NULL;
END $$;
CREATE OR REPLACE TRIGGER {trigger} AFTER INSERT OR UPDATE OR DELETE ON {quoted(table)}
  FOR EACH ROW EXECUTE FUNCTION {function}();
CREATE OR REPLACE TRIGGER {truncated} AFTER TRUNCATE ON {quoted(table)}
  FOR EACH STATEMENT EXECUTE FUNCTION {function}();
"""
