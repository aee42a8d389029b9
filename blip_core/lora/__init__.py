"""Captioners and judges of others, tuned on the clean set by an adapter (LoRA) in the loop of every training.

In: the folder of a vision-language model, a generation's human texts and their pictures. Out: an adapter's folder.
Open first: tuning.py.
"""
