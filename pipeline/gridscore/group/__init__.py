"""The group room: processes that share the partitions of a map's journal, whatever they do with its entries.

Membership, leases, offsets, reading, loss and rescans; `Group` is what jobs and sinks use of it.
"""
