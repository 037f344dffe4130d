"""The sources room: a folder for each plug, which brings live data into an event map.

`base` says what a source promises, `runner` runs one, `status` says how they do; `loading` and `tables` are for
`gridscore load`.
"""
