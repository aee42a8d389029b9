"""Encoded bytes to pixels, and what is admitted as a picture.

In: the bytes of a file. Out: a stored image and its pixels, or the reason why not.
Open first: images.py.
"""
