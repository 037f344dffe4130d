"""The web hook sink."""

from gridscore.job.plugs.kinds import PlugKind

PLUG = PlugKind(
    "webhook",
    settings="gridscore.sinks.webhook.settings:WebhookSinkSettings",
    plug="gridscore.sinks.webhook.sink:WebhookSink",
    summary="Calls to a web server, each signed.",
    example=(
        "--from results.payments --url https://shop.example.com/decisions --secret '${HOOK_SECRET}' "
        "--only decision=decline"
    ),
    extra="webhook",
)
