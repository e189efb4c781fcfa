"""Levels of a model: their table, their frequencies, their cost."""
