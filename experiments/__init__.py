"""Scripts: one per experiment; each docstring is its command and result."""
