"""params.yaml: every value's type, bounds and meaning; a module for each part. Values live in params.yaml alone.

In: params.yaml. Out: checked, frozen settings, or a message that names each fault.
Open first: params.py.
"""
