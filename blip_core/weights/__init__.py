"""Models on disk: our own folders, and those of transformers and of BLIP's authors, in and out.

In: a folder or a .pth file. Out: a model with its tokenizer, or a folder that transformers opens.
Open first: checkpoint.py, then load.py.
"""
