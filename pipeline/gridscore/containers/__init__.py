"""The room of containers: members and workers as containers of this machine's engine, found again by their labels."""

from gridscore.containers.containers import IMAGE, Containers

__all__ = ["IMAGE", "Containers"]
