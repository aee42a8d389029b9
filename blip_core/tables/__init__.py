"""The files between stages: caption tables, manifests, gates, shards, held-out pictures, placeholders.

In: rows and encoded pictures. Out: sealed folders: Parquet tables, tars with an index.
Open first: captions.py, then shards.py.
"""
