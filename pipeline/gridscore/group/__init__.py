"""The group room: processes that share the partitions of a map's journal, whatever they do with its entries.

Membership, leases, offsets, reading, loss and rescans; jobs and sinks use them through `Group`.
"""
