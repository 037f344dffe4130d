"""The operations room: what operators see of a cluster, and do about it."""
