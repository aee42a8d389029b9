"""What a notebook wants of all this, by `import blip_core`: models, captions, scores, generations, metrics.

In: paths, pictures, texts. Out: lists, arrays, tables; or a ValueError that says what was got and what to do.
Open first: models.py.
"""
