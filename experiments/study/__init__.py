"""Which parts of Hope cost or gain, on text, at equal parameters."""
