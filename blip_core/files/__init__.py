"""Files that appear whole or not at all, their hashes, and the closed list of reasons for what is set aside.

In: values or bytes. Out: files by rename, digests.
Open first: atomic.py.
"""
