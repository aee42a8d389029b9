"""MLflow: runs, the registry, who is champion and where a result comes from. The only home of MLflow.

In: params, metrics and files of a stage. Out: runs, registered versions with their provenance.
Open first: runs.py.
"""
