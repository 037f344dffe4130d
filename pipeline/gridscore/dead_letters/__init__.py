"""The dead letters room: what jobs, sources and sinks could not use, why, and its bytes."""
