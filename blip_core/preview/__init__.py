"""A look before you spend: raw data before ingest, the cost of a training, where the time of a step goes.

In: raw files, or params.yaml. Out: a page of text.
Open first: inspect.py.
"""
