"""A generation in the formats that other tools read.

In: a generation and its shards. Out: WebDataset, Hugging Face, COCO or BLIP lists, with scores, provenance and a card.
Open first: data.py.
"""
