"""Scripts that time other libraries, each in its own environment."""
