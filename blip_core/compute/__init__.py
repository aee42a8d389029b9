"""What every stage that computes with tensors shares: ranks, precision, pixels, padding, work that a rerun takes up.

In: decoded pictures, texts, RANK and WORLD_SIZE. Out: tensors on this process's device; folders of unfinished work.
Open first: pixels.py, then distributed.py.
"""
