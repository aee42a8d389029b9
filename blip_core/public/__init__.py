"""Weights of others in, and ours out in the form that others read."""
