"""The bench room: what `gridscore bench` measures. Uses every other room, and none uses it."""
