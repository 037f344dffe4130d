"""The HTTP source."""

from gridscore.job.plugs.kinds import PlugKind

PLUG = PlugKind(
    "http",
    settings="gridscore.sources.http.settings:HttpSourceSettings",
    plug="gridscore.sources.http.source:HttpSource",
    summary="What others post: web pages, tills, anything that speaks HTTP.",
    example="--to events.purchases --key purchase --results results.purchases",
    extra="http",
)
