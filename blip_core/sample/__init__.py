"""The built-in sample world: drawn scenes whose truth is known.

In: a seed and sizes. Out: raw data as users bring it, with truth.parquet beside it.
Open first: write.py.
"""
