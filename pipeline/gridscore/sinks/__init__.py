"""The sinks room: a folder for each plug, which brings results to where applications act on them.

`base` says what a sink promises, `runner` runs a process of one, `records` keeps what the cluster knows of them.
"""
