"""The soak room: load and faults on a cluster and its workers, and a judgement of what came out, from outside.

Its door is `trial.run_soak`. It is not imported here: the processes that put, listen and score come through this
package too, and need none of it. Nothing imports this room but its command and its tests.
"""
