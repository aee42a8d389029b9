"""Captioners and filters at work on the shards, here or over Ray.

In: pictures, texts, a captioner or a filter. Out: candidate captions; ITM and ITC scores.
Open first: med.py.
"""
