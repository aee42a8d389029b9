"""Objects that lie elsewhere: S3 by boto3, its only home; other URLs by fsspec; which addresses are public.

In: a URL. Out: files, whole and checked, or a clear error.
Open first: storage.py.
"""
