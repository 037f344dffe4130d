"""The sources room: one folder a plug, each of which brings live data into an event map.

`base` says what a source promises, `registry` which there are, `runner` runs one, `status` says how they do; `loading`
and `tables` are for `gridscore load`.
"""
