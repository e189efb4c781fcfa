"""Speed of language models and of a single layer."""
