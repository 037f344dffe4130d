"""The testing room."""

from pipeline.testing.cluster import StubCluster
from pipeline.testing.faults import Fault

__all__ = ["Fault", "StubCluster"]
