"""The client room: the door for programs. What they put into a cluster, and what they get out of it."""

from gridscore.client.client import Client, connect

__all__ = ["Client", "connect"]
