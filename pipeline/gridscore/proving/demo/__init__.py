"""The demo room: a year of real flights, scored live on a real cluster, and checked to the bit.

Its door is `story.run_demo`, which uses the other rooms as any application would. It is not imported here: the training
script comes through this package too, and needs none of it.
"""
