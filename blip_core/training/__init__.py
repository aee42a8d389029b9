"""A training from batches to a checkpoint: objectives, loop, resume, health.

In: a generation's rows, shards and a model. Out: a trained model, its history.
Open first: loop.py, then objectives.py.
"""
