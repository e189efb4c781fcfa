"""Preparation of corpora that are larger than memory."""
