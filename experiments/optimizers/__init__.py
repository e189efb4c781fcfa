"""Comparisons of optimizers: quality, forgetting, seconds per step."""
