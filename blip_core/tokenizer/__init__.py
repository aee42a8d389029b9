"""Texts to token ids, by any tokenizer, with BLIP's [DEC] and [ENC].

In: a text, and a tokenizer's folder or file, or texts to build one from. Out: ids that the model knows.
Open first: tokenizer.py, then folders.py.
"""
