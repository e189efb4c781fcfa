"""Endless streams, and pretrained models that learn from what they read."""
