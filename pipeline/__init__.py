"""Gridscore: machine-learning inference on live data inside an ordinary Hazelcast cluster."""
