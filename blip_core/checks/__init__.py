"""What must hold of every row before anything trains on it. The only home of Great Expectations.

In: caption tables and shard indices. Out: verdicts with examples, Data Docs (pages and an index of them).
Open first: contract.py.
"""
