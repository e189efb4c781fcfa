"""Associative recall, and the growth of the outer gradient with length."""
