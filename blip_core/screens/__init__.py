"""Screens of the crawl's pictures: by what is measured of their pixels, by classifiers, and by any field that their source has.

In: pictures, and a shard's table of fields. Out: measured fields, and which pictures a screen hits, and why.
Open first: fields.py, then measures.py.
"""
