"""What each part of the chain is worth: arms over params.yaml, each seed in a clone.

In: ablations.yaml and params.yaml. Out: tables with intervals, a figure.
Open first: arms.py, then run.py.
"""
