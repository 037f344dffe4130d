"""Metrics of a server, as Prometheus reads them: counted where they arise, and collected when they are asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.core import Metric

    from gridscore.serve.live_jobs import LiveJobs
    from gridscore.serve.scores import Scores
    from gridscore.serve.streams import Streams
    from gridscore.sources.http.app import EventsApp


class Metrics:
    """The metrics of one server.

    Attributes:
        events: What takes events, while it is open.
    """

    def __init__(self, jobs: LiveJobs, scores: Scores, streams: Streams) -> None:
        self._jobs, self._scores, self._streams = jobs, scores, streams
        self.events: EventsApp | None = None
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def text(self) -> bytes:
        """All of them now."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """As prometheus-client asks."""
        scored = CounterMetricFamily("gridscore_serve_events", "Events scored on request.", labels=["job"])
        batches = CounterMetricFamily("gridscore_serve_batches", "Micro-batches of requests.", labels=["job"])
        waiting = GaugeMetricFamily("gridscore_serve_waiting_events", "Events that wait to be scored.", labels=["job"])
        version = GaugeMetricFamily("gridscore_serve_model_version", "Version of the model.", labels=["job", "model"])
        ready = GaugeMetricFamily("gridscore_serve_ready", "Whether a job scores requests.", labels=["job"])
        for name, record in sorted(self._jobs.records.items()):
            live = self._jobs.live(name)
            ready.add_metric([name], float(live is not None))
            if live is not None:
                scored.add_metric([name], live.stats.events)
                batches.add_metric([name], live.stats.batches)
                waiting.add_metric([name], live.waiting)
                version.add_metric([name, record.job.model.name], live.stats.version)
        yield from (scored, batches, waiting, version, ready)
        answers = CounterMetricFamily("gridscore_serve_answers", "Answers to requests for scores.", labels=["status"])
        for status, count in sorted(self._scores.answers.items()):
            answers.add_metric([str(status)], count)
        yield answers
        yield GaugeMetricFamily("gridscore_serve_listeners", "Streams of results.", value=self._streams.listeners)
        if self.events is not None:
            counts = self.events.counts()
            yield CounterMetricFamily(
                "gridscore_serve_posted_events", "Posted and confirmed.", value=counts["confirmed"]
            )
            yield CounterMetricFamily(
                "gridscore_serve_refused_events", "Posted, but not events.", value=counts["refused"]
            )
            yield GaugeMetricFamily("gridscore_serve_posting_events", "Wait for the grid.", value=counts["waiting"])
            yield GaugeMetricFamily(
                "gridscore_serve_posting_bytes", "The same in bytes.", value=counts["waiting_bytes"]
            )
