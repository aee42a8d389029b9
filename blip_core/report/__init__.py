"""The parts of the report: what the files say, how it is drawn and worded. The only home of matplotlib.

In: metrics, tables and histories of the chain. Out: sections of a page, figures.
Open first: findings.py, then page.py.
"""
