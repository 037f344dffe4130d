"""The dead letters room: what could not be used, why, and its bytes; written by jobs, sources and sinks alike."""
