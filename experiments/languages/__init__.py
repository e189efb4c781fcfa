"""Formal languages, and invented ones that are read one after another."""
