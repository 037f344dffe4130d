"""Plugs: which kinds of sources and sinks there are, and what the settings of all have in common; typed and strict.

Each plug is a folder of `gridscore.sources` or `gridscore.sinks`, with its settings, or of another distribution.
"""
