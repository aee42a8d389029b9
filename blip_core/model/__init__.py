"""MED, the network: ViT, the text transformer with its three roles, generation. Tensors only; no files, no devices.

In: pixels and token ids. Out: features, logits, token ids.
Open first: blip.py.
"""
