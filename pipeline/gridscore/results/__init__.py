"""The results room: what jobs write, as programs see it: streams of results, and the outcome of one event."""
