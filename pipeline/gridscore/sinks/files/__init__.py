"""The file sink."""

from gridscore.job.plugs.kinds import PlugKind

PLUG = PlugKind(
    "files",
    settings="gridscore.sinks.files.settings:FilesSinkSettings",
    plug="gridscore.sinks.files.sink:FilesSink",
    summary="Parquet files or JSON lines in a folder.",
    example="--from results.payments --folder scores --format jsonl",
)
