"""Small tasks for the parts of a language model's memory, one at a time."""
