"""Training, sampling and evaluation of a language model on text."""
