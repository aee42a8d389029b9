"""What was, and how to have it again. The only home of DVC in this package.

In: dvc.lock of any commit, DVC's cache. Out: generations and their differences, lineage, a model trained again.
Open first: generations.py.
"""
