"""What a model is worth: captioning and retrieval metrics, with intervals and paired tests.

In: captions with references, or features. Out: BLEU, ROUGE-L, CIDEr, recalls, resampled intervals.
Open first: metrics.py.
"""
