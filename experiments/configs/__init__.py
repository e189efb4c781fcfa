"""Configurations: each file has ``get_config``; its docstring is the command."""
