"""The sinks room: one folder a plug, each of which brings results to where applications act on them.

`base` says what a sink promises, `registry` which there are, `runner` runs a process of one, `records`
keeps what the cluster knows of them.
"""
