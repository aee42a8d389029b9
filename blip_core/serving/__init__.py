"""The model at work for others: what a request may ask, and the answers. mlflow/serve.py and the demo page stand before it."""
