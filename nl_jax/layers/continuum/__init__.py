"""The continuum memory system, one file for each objective."""
