"""What the sources say of a picture beside its texts, its URL and licence above all: read, given types, kept by shard.

In: named values as a format finds them. Out: a sealed folder with a table for each shard, a row for each picture, joined by `key`.
Open first: folder.py (`metadata_of` gives the rows of some keys), then fields.py.
"""
