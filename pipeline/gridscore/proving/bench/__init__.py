"""The bench room: what `gridscore bench` measures. It uses every other room; only its commands import it."""
