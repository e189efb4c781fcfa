"""Pages made from stored cells."""
