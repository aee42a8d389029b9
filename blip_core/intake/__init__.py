"""Raw data to shards: the formats, what is set aside, copies, splits.

In: folders, tars and lists in any known format. Out: immutable shards, the rows of g0, quarantined rows with their reasons.
Open first: units.py, then formats/.
"""
