"""Generations and models as other tools read them.

In: a generation and its shards, or a model folder. Out: tars, tables and lists with scores, provenance and a card; ONNX or torch.export.
Open first: data.py for a generation, model.py for a model.
"""
