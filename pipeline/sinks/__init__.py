"""The sinks room: one file a plug, each of which brings results to where applications act on them."""
