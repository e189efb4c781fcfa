"""Associative recall, and what the outer gradient does on the way to it."""
