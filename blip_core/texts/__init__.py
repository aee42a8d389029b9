"""What a text must be: cleaned at intake, and screened for those that say nothing of their picture.

In: bytes or a string. Out: a clean text, or the reason why not; marks of the screens.
Open first: clean.py, then screens.py.
"""
