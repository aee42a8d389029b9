"""People judge texts: which ones they are asked about, the sheet they fill in, what it tells of the filter.

In: a generation, and labels that people gave. Out: one HTML file; agreement of people and filter.
Open first: sheet.py.
"""
