"""Pictures of a list of URLs to shards, politely and each once.

In: lists of URLs and texts. Out: tars in img2dataset's layout, a table of all rows, why the others failed.
Open first: run.py.
"""
