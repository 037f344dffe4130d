"""The log file source."""

from gridscore.job.plugs.kinds import PlugKind

PLUG = PlugKind(
    "logfile",
    settings="gridscore.sources.logfile.settings:LogfileSourceSettings",
    plug="gridscore.sources.logfile.source:LogfileSource",
    summary="Lines of log files, as they grow and are rotated.",
    example="--path '/var/log/nginx/access.log*' --format combined --to events.requests",
    extra="logfile",
)
