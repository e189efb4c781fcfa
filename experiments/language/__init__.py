"""A language model on text: training, sampling, evaluation."""
