"""The model at work for others. mlflow/serve.py and the demo page stand before it.

In: a request: images and texts, bounded. Out: captions, match scores, embeddings, answers, and where the model looked.
Open first: service.py; others.py has models that are no BLIP of ours.
"""
