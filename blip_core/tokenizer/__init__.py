"""Texts to token ids: BERT's WordPiece with [DEC] and [ENC].

In: a text and a vocabulary. Out: ids that the model knows.
Open first: wordpiece.py.
"""
