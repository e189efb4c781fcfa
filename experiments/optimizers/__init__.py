"""Optimizers compared: quality, forgetting, seconds per step."""
