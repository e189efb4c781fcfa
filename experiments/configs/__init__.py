"""Configurations: each file has ``get_config`` and its command."""
