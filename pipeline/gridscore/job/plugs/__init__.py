"""Plugs: the settings of sources and sinks, as the job file and the command line give them; typed and strict.

One file a plug. What runs them is in `gridscore.sources` and `gridscore.sinks`.
"""
