"""Formal languages, and invented languages read one after another."""
