"""Downstream tasks: what a model is worth once it is tuned for something, as the paper's tables have it.

In: a model of the chain, and a folder of examples for each task. Out: a tuned network, and metrics with intervals.
Open first: task.py, then vqa.py as an example.
"""
