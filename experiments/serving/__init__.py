"""A trained model served over HTTP, with a state for each user."""
